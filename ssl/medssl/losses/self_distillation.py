"""Self-distillation on distributions: the student predicts which of K prototypes the teacher chooses."""

import torch
from torch import Tensor

from medssl.losses.distributed import full_precision


@full_precision
def centred_cross_entropy(
    student_BK: Tensor, teacher_BK: Tensor, centre_K: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Return the loss of DINO, Caron et al., 2021, https://arxiv.org/abs/2104.14294, equation 2 with the centre of section 3.1.

    With p the softmax of (teacher - centre) / teacher_temperature and q that of student / student_temperature, it is the
    mean over rows of -sum over k of p_k log q_k. No gradient flows to the teacher.
    """
    p = torch.softmax((teacher_BK.detach() - centre_K) / teacher_temperature, dim=1)
    return -(p * torch.log_softmax(student_BK / student_temperature, dim=1)).sum(1).mean()
