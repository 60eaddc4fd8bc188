"""Text files in UTF-8, UTF-16 or CP949, the encoding of Excel on a Korean Windows.

Almost any bytes are valid CP949, and Chinese (GBK), Japanese (Shift-JIS) or German (Latin-1) text read as such turns into rare
Hangul and Hanja. So text counts as CP949 only if most of it is Hangul that is in everyday use.
"""

import codecs
from collections import Counter

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ENOUGH = (
    0.7  # share of the letters beyond ASCII that are everyday Hangul; in GBK and Shift-JIS read as CP949 it is about .1
)
EVERYDAY = frozenset(
    "가각간갈감갑값강갖같개객거건걸검것겠게겨격견결경계고곡곤골곳공곽과관광괴교구국군굴궁권귀규균그극근글금급기긴길김깊까깨꺼꾸께껴꼬꽃꿈끄끈끝끼"
    "나낙난날남납낭내냉너널넓넘넣네녀녁년념녕노녹논농높놓뇌뇨누눈뉴느는늘능늑늦니닉닌님"
    "다닥단달닫담답당대댁더덕던덜덩덮데도독돈돌동되된될됐됨됩두둔뒤드득든들등디따딱때떠떤또뚜뚝뜨띠"
    "라락란런람랑래량러럭럼럽렇레렉려력련렬렴렵렸령례로록론료룡루룹류륜률르른를름릎리린릴림립링"
    "마막만많말맘망맞맡매맥맹머먹먼멀멍메멘며면멸명모목몰못묘무묵문물뭐므미믹민밀밑밖"
    "바박반베브페받발밤방배백버번벌범법벤벽변별병벼보복본볼봄봉부북분불붓붙비빈빌빗빛빠빨뺨뼈"
    "사산살삼상새색샘생샤서석선설섬성세섹센셀셋션소속손솔송쇄쇠수숙순술숨숫쉬슈스슨슬습승시식신실심십싱싸쌍써쏠쓰씨씩씻"
    "아악안앉않알앓암압앙앞애액야약얇양어억언얻얼엄업없었에엑엔엘여역연열염엽였영옆예오옥온올옮옹와완왔왕왜외왼요욕용우욱운울움웃워원월웠위윈윗유육윤율융"
    "으은을음의이익인일읽임입잇있잉잎"
    "자작잔잘잠잡장재저적전절젊점접정제젤져졌조족존졸좀좁종좋좌죄주죽준줄줌중즈즉즐증지직진질짐집징짜짧째쪽찌찍찜"
    "차착찬찰참창찾채책챙처척천철첨첫청체초촉촌총촬최추축출충췌취측층치칙친침칭"
    "카칼캐캡커컨컬컴케켜코콘콜콩쿠크큰클큼키킨"
    "타탁탄탈탑탕태택터턱털턴테텍토톤톱통퇴투튜트특튼틀틱티팀"
    "파판팔팝패팽퍼펌펙펴편평폐포폭폰폴폼표푸품풍퓨프플피핀필핍핏"
    "하학한할함합항해핵핼했행향허험헐헤혁현혈협형혜호혹혼홍화확환활황회획횟횡효후훈휘휴흉흑흔흘흡흥희히힘"
)
REFUSED = "is neither UTF-8 nor, read as CP949 (Korean Windows), Korean text"


def decode(data: bytes) -> tuple[str, str] | None:
    """Return text and the encoding it was read as; None if it is neither UTF-8, UTF-16 with a mark, nor Korean CP949."""
    try:
        if data.startswith(UTF16):
            return data.decode("utf-16"), "UTF-16"
        return data.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode("cp949")
    except UnicodeDecodeError:
        return None
    letters = Counter(c for c in text if c.isalpha() and not c.isascii())
    everyday = letters.keys() & EVERYDAY
    korean = len(everyday) > len(letters) / 2 and sum(letters[c] for c in everyday) >= ENOUGH * letters.total()
    return (text, "CP949") if korean else None
