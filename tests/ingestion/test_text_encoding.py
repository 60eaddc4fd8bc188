"""Only Korean text is read as CP949, although almost any bytes are valid in it."""

import pytest

from medssl.ingestion.text_encoding import decode

KOREAN = "파일명,진단명,성별\n사진1.png,폐렴,여\n사진2.png,정상,남\n"
CHINESE = "文件名,诊断,性别\n图像1.png,肺炎,女\n图像2.png,正常,男\n"
JAPANESE = "ファイル名,診断,性別\n画像1.png,肺炎,女\n画像2.png,正常,男\n"


@pytest.mark.parametrize(
    ("text", "encoding", "found"),
    [
        (KOREAN, "utf-8", "UTF-8"),
        (KOREAN, "utf-8-sig", "UTF-8"),
        (KOREAN, "cp949", "CP949"),
        (KOREAN, "utf-16", "UTF-16"),
        ("file,label\n1.png,폐렴\n", "euc_kr", "CP949"),
        (CHINESE, "utf-8", "UTF-8"),
        ("file,label\na.png,NORMAL\n", "ascii", "UTF-8"),
    ],
)
def test_what_it_was_read_as(text, encoding, found):
    assert decode(text.encode(encoding)) == (text, found)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CHINESE, "gbk"),
        (CHINESE, "gb18030"),
        ("file,label\na.png,肺炎\nb.png,正常\n", "gbk"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "cp932"),
        ("file,label\na.png,肺炎\nb.png,正常\n", "shift_jis"),
        ("檔名,診斷\na.png,肺炎\nb.png,正常\n", "big5"),
        ("Datei,Größe\na.png,groß\n", "cp1252"),
        ("файл,диагноз\na.png,пневмония\n", "cp1251"),
        ("file,label\na.png,±5\n", "cp949"),
    ],
)
def test_other_encodings_are_refused(text, encoding):
    assert decode(text.encode(encoding)) is None
