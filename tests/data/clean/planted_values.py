"""Random values of each kind, with check digits by arithmetic of their own."""

from __future__ import annotations

import string
from collections.abc import Callable
from random import Random

from ray_jobs.spec.personal_data import Kind

FULL_WIDTH = str.maketrans("0123456789-+()@.", "０１２３４５６７８９−＋（）＠．")
_AREAS = ("3", "6", "45", "52", "11", "92", "75", "78", "82", "22", "48", "43")


def digits(random: Random, count: int) -> str:
    return "".join(random.choices(string.digits, k=count))


def email(random: Random) -> str:
    name = random.choice(
        ["taro.yamada", "s_suzuki", "info", "k-tanaka+news", "hanako1985", "j.smith", "m.oconnor", "a.b"]
    )
    domains = ["example.co.jp", "mail.example.com", "example.ne.jp", "univ.example.ac.jp", "example.io"]
    return f"{name}@{random.choice(domains)}"


def phone(random: Random) -> str:
    area = random.choice(_AREAS)
    # Exchanges that are assigned in every one of these areas.
    local = {"3": "3", "6": "6"}.get(area, "2") + digits(random, 4 - len(area))
    last = digits(random, 4)
    mobile = (random.choice(["070", "080", "090"]), f"{random.randint(1000, 9999)}", last)
    if mobile[0] == "070":
        mobile = ("080", mobile[1], last)
    return random.choice(
        [
            f"0{area}-{local}-{last}",
            f"0{area}({local}){last}",
            f"(0{area}) {local}-{last}",
            f"+81-{area}-{local}-{last}",
            f"+81 {area} {local} {last}",
            "-".join(mobile),
            "".join(mobile),
            " ".join(mobile),
            f"+81{mobile[0][1:]}{mobile[1]}{last}",
            f"0120-{random.randint(100, 999)}-{random.randint(100, 999)}",
            f"+1 {random.choice(['415', '212', '650', '206'])}-{random.randint(222, 899)}-{last}",
            f"({random.choice(['415', '212', '650', '206'])}) {random.randint(222, 899)}-{last}",
            f"+44 20 {random.randint(7000, 7999)} {last}",
        ]
    )


def postal_code(random: Random) -> str:
    return f"{random.randint(1, 9)}{digits(random, 2)}-{digits(random, 4)}"


_TOWNS = (
    "東京都港区芝公園", "東京都新宿区西新宿", "大阪府大阪市北区梅田", "京都府京都市中京区河原町",
    "北海道札幌市中央区北一条西", "神奈川県横浜市西区みなとみらい", "愛知県名古屋市中村区名駅",
    "福岡県福岡市博多区博多駅前", "千葉県柏市若葉町", "埼玉県さいたま市大宮区桜木町",
    "静岡県浜松市中央区鍛冶町", "長野県北佐久郡軽井沢町長倉", "沖縄県那覇市おもろまち",
)  # fmt: skip


def address(random: Random) -> str:
    a, b, c = (random.randint(1, 29) for _ in range(3))
    return random.choice(_TOWNS) + random.choice(
        [
            f"{a}丁目{b}番{c}号",
            f"{a}丁目{b}-{c}",
            f"{a}-{b}-{c}",
            f"{a}番地",
            f"{a}番地{b}",
            f"{a}丁目{b}番地{c}",
            f"{a}-{b}",
        ]
    )


def _luhn_digit(body: str) -> str:
    for digit in string.digits:
        total = 0
        for place, each in enumerate((body + digit)[::-1]):
            value = int(each) * (2 if place % 2 else 1)
            total += value // 10 + value % 10
        if total % 10 == 0:
            return digit
    raise AssertionError


def credit_card(random: Random) -> str:
    prefix, length = random.choice(
        [("4", 16), ("52", 16), ("2230", 16), ("37", 15), ("3540", 16), ("36", 14), ("6011", 16)]
    )
    body = prefix + digits(random, length - len(prefix) - 1)
    number = body + _luhn_digit(body)
    separator = random.choice(["", " ", "-"])
    if length == 16:
        return separator.join(number[at : at + 4] for at in (0, 4, 8, 12))
    return separator.join([number[:4], number[4:10], number[10:]])


def my_number(random: Random) -> str:
    body = digits(random, 11)
    total = sum(int(digit) * (at + 1 if at <= 6 else at - 5) for at, digit in enumerate(body[::-1], start=1))
    check = 11 - total % 11
    number = body + str(0 if check > 9 else check)
    separator = random.choice(["", " ", "-"])
    return separator.join(number[at : at + 4] for at in (0, 4, 8))


def corporate_number(random: Random) -> str:
    body = digits(random, 12)
    total = sum(int(digit) * (1 if at % 2 else 2) for at, digit in enumerate(body[::-1], start=1))
    return f"{9 - total % 9}{body}"


def bank_account(random: Random) -> str:
    return digits(random, 7)


def passport(random: Random) -> str:
    return "".join(random.choices("TMNR", k=1) + random.choices("HKRSZ", k=1)) + digits(random, 7)


def driving_licence(random: Random) -> str:
    return random.choice("3456") + digits(random, 11)


def ip_address(random: Random) -> str:
    four = ".".join(str(random.randint(10, 223)) for _ in range(4)).replace("127.", "128.", 1)
    groups = [f"{random.randint(0x1000, 0xFFFF):x}" for _ in range(5)]
    return random.choice(
        [
            four,
            four,
            f"2001:db8::{groups[0]}:{groups[1]}",
            f"2400:{':'.join(groups)}:0:1",
            f"fe80::{groups[2]}:{groups[3]}",
        ]
    )


def _token(random: Random, count: int, letters: str = string.ascii_letters + string.digits) -> str:
    return "".join(random.choices(letters, k=count - 4)) + "a7Z9"


def api_key(random: Random) -> str:
    upper = string.ascii_uppercase + string.digits
    makers: list[Callable[[], str]] = [
        lambda: f"sk-{_token(random, 48)}",
        lambda: f"sk-proj-{_token(random, 64)}",
        lambda: f"sk-ant-api03-{_token(random, 80)}",
        lambda: f"AKIA{''.join(random.choices(upper, k=16))}",
        lambda: f"ghp_{_token(random, 36)}",
        lambda: f"github_pat_{_token(random, 22)}_{_token(random, 59)}",
        lambda: f"xoxb-{digits(random, 12)}-{digits(random, 12)}-{_token(random, 24)}",
        lambda: f"AIza{_token(random, 35)}",
        lambda: f"sk_live_{_token(random, 24)}",
        lambda: f"hf_{_token(random, 34)}",
        lambda: f"glpat-{_token(random, 20)}",
        lambda: f"eyJ{_token(random, 24)}.eyJ{_token(random, 60)}.{_token(random, 43)}",
    ]
    return random.choice(makers)()


def password(random: Random) -> str:
    return _token(random, random.randint(10, 32), string.ascii_letters + string.digits + "-_")


def private_key(random: Random) -> str:
    kind = random.choice(["RSA ", "EC ", "", "OPENSSH ", "ENCRYPTED "])
    body = "\n".join(_token(random, 64) for _ in range(random.randint(3, 12)))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----"


VALUES: dict[Kind, Callable[[Random], str]] = {
    "private_key": private_key,
    "api_key": api_key,
    "email": email,
    "credit_card": credit_card,
    "my_number": my_number,
    "corporate_number": corporate_number,
    "bank_account": bank_account,
    "passport": passport,
    "driving_licence": driving_licence,
    "address": address,
    "postal_code": postal_code,
    "phone": phone,
    "ip_address": ip_address,
}
