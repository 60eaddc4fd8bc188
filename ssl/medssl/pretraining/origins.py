"""Weights of other runs that a pretraining run learns from: those it starts from, and those of a frozen teacher."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl import catalog
from medssl.encoders.config import InputConfig
from medssl.encoders.initial_weights import Weights
from medssl.errors import UserError
from medssl.methods.parts.frozen_teacher import FrozenTeacher
from medssl.runs.config import Choice, PretrainOptions
from medssl.runs.run_folder import Run


@dataclass(frozen=True)
class Origins:
    """Weights that are at hand before training: see `PretrainOptions.init` and `teacher`; None without."""

    init: Weights | None
    teacher: Weights | None

    @classmethod
    def of(cls, options: PretrainOptions, spec: dict[str, Any]) -> "Origins":
        """Read what the options name, for a method given by `catalog.spec`.

        Raises UserError for files that cannot be used, for a teacher that the method does not have or that is no run, for a
        method without its teacher, and for adapt= without weights.
        """
        init = None if options.init is None else Weights.read(options.init)
        pretrained = bool((options.encoder_options or {}).get("pretrained"))
        if options.adapt != "all" and init is None and not pretrained:
            raise UserError(
                f"adapt={options.adapt} trains a part of an encoder that has weights; give init=PATH, or leave adapt out"
            )
        if init is not None and pretrained:
            raise UserError(
                "init= and encoder.pretrained=true both give the encoder its weights; leave one of them out"
            )
        wants, teacher = catalog.takes(spec, "teacher"), None
        if options.teacher is not None and wants == "no":
            raise UserError(
                f"{options.method} has no frozen teacher; leave out teacher, or choose method=distill, data2vec or ijepa"
            )
        if options.teacher is None and wants == "yes":
            raise UserError(f"{options.method} learns from the encoder of another run; name it with teacher=RUN")
        if options.teacher is not None:
            teacher = Weights.read(options.teacher)
            if teacher.encoder is None:
                raise UserError(f"teacher={options.teacher} does not say how it takes scans; give the folder of a run")
        return cls(init, teacher)

    def encoder(self, options: PretrainOptions, default: str) -> Choice:
        """Return the encoder asked for; else that of the run whose weights training starts from, else `default`."""
        given = dict(options.encoder_options or {})
        run = None if self.init is None else self.init.run
        if options.encoder is not None or run is None or not (run / "resolved.yaml").exists():
            return Choice.of("encoder", options.encoder or default, given)
        found = Run(run).config().encoder
        fresh = {"pretrained": False} if "pretrained" in found.options else {}
        return Choice.of("encoder", found.name, dict(found.options) | fresh | given)

    def runs(self) -> list[tuple[Path, str]]:
        """Return the folder and key_id of each run among them."""
        found = [w for w in (self.init, self.teacher) if w is not None and w.encoder is not None]
        return [(w.file.parent, w.encoder[1].key_id) for w in found if w.encoder is not None]

    def arguments(self, student: InputConfig) -> dict[str, FrozenTeacher]:
        """Return the frozen teacher as an argument of the method's constructor, if there is one."""
        if self.teacher is None or self.teacher.encoder is None:
            return {}
        encoder, config = self.teacher.encoder
        return {"teacher": FrozenTeacher(encoder, config.input, student)}
