"""Signing in by password and by one-time link, and out again."""

import re
from ipaddress import ip_network

import pytest
from django.test import Client

from tenants.models import SignInLink, User
from tenants.services.links import sign_in_link_create

PASSWORD = "a-long-enough-password"
pytestmark = pytest.mark.django_db


@pytest.fixture
def user() -> User:
    return User.objects.create_user("someone@penstock.example", PASSWORD)


def try_password(client: Client, password: str, **extra: str) -> object:
    return client.post("/sign-in/", {"email": "someone@penstock.example", "password": password, **extra})


def test_the_right_password_signs_in(client: Client, user: User) -> None:
    answer = try_password(client, PASSWORD)
    assert (answer.status_code, answer["Location"]) == (302, "/")
    assert client.session["_auth_user_id"] == str(user.pk)


def test_the_session_cookie_is_for_this_site_only_and_hidden_from_scripts(client: Client, user: User) -> None:
    cookie = try_password(client, PASSWORD).cookies["sessionid"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Lax"


def test_wrong_password_and_unknown_user_get_the_same_words(client: Client, user: User) -> None:
    wrong = try_password(client, "wrong")
    unknown = client.post("/sign-in/", {"email": "nobody@penstock.example", "password": "wrong"})
    assert wrong.status_code == unknown.status_code == 422
    said = [re.search(r'role="alert".*?<p>(.*?)</p>', row.content.decode(), re.S)[1] for row in (wrong, unknown)]
    assert said[0] == said[1] == "E-mail address or password is wrong."
    assert b'value="someone@penstock.example"' in wrong.content
    assert b"wrong" not in re.findall(rb"<input[^>]*password[^>]*>", wrong.content)[0]


def test_missing_fields_are_named(client: Client) -> None:
    answer = client.post("/sign-in/", {"email": "", "password": ""})
    assert answer.status_code == 422
    assert b"Enter your e-mail address and your password." in answer.content


def test_guessing_pauses_sign_in_and_says_for_how_long(client: Client, user: User) -> None:
    for _ in range(5):
        assert try_password(client, "wrong").status_code == 422
    answer = try_password(client, PASSWORD)
    assert answer.status_code == 429
    assert 0 < int(answer["Retry-After"]) <= 900
    assert b"Too many wrong passwords" in answer.content
    assert "_auth_user_id" not in client.session


PROXY = {"REMOTE_ADDR": "10.0.0.2"}


@pytest.fixture
def behind_a_proxy(settings: object) -> None:
    settings.PENSTOCK_TRUSTED_PROXIES = (ip_network("10.0.0.0/8"),)  # type: ignore[attr-defined]


def test_guesses_through_a_proxy_do_not_block_others(client: Client, user: User, behind_a_proxy: None) -> None:
    for number in range(31):
        guess = {"email": f"person{number}@penstock.example", "password": "wrong"}
        answer = client.post("/sign-in/", guess, HTTP_X_FORWARDED_FOR="203.0.113.7", **PROXY)
    assert answer.status_code == 429
    form = {"email": user.email, "password": PASSWORD}
    assert client.post("/sign-in/", form, HTTP_X_FORWARDED_FOR="203.0.113.7", **PROXY).status_code == 429
    assert client.post("/sign-in/", form, HTTP_X_FORWARDED_FOR="198.51.100.9", **PROXY).status_code == 302


@pytest.mark.parametrize(
    ("peer", "forwarded_for"),
    [
        ("203.0.113.7", "198.51.100.{}"),  # not by a proxy of ours
        ("10.0.0.2", "198.51.100.{}, 203.0.113.7"),  # the visitor's own invention, before what the proxy saw
    ],
)
def test_nobody_gets_a_new_address_by_saying_so(
    client: Client, user: User, behind_a_proxy: None, peer: str, forwarded_for: str
) -> None:
    form = {"email": user.email, "password": "wrong"}
    tries = [
        client.post("/sign-in/", form, REMOTE_ADDR=peer, HTTP_X_FORWARDED_FOR=forwarded_for.format(number)).status_code
        for number in range(6)
    ]
    assert tries == [422] * 5 + [429]


@pytest.mark.parametrize(
    ("wanted", "target"),
    [
        ("/console/?range=6h", "/console/?range=6h"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("/\\evil.example", "/"),
        ("", "/"),
    ],
)
def test_only_paths_of_this_site_are_gone_to_next(client: Client, user: User, wanted: str, target: str) -> None:
    assert try_password(client, PASSWORD, next=wanted)["Location"] == target


def test_next_survives_a_wrong_password(client: Client, user: User) -> None:
    assert b'name="next" value="/tenants/"' in try_password(client, "wrong", next="/tenants/").content


def test_the_form_is_skipped_when_signed_in(client: Client, user: User) -> None:
    client.force_login(user)
    assert client.get("/sign-in/?next=/tenants/")["Location"] == "/tenants/"


def test_opening_a_link_does_not_use_it_up(client: Client, user: User) -> None:
    path = f"/sign-in/link/{sign_in_link_create(user=user, actor=user)}"
    for _ in range(3):
        assert client.get(path).status_code == 200
    client.head(path)
    assert SignInLink.objects.get().used_at is None
    assert "_auth_user_id" not in client.session


def test_the_button_redeems_a_link_once(client: Client, user: User) -> None:
    path = f"/sign-in/link/{sign_in_link_create(user=user, actor=user)}"
    assert client.post(path)["Location"] == "/"
    assert client.session["_auth_user_id"] == str(user.pk)
    again = Client().post(path)
    assert again.status_code == 410
    assert b"This link no longer works" in again.content
    assert b"Ask for a new one" in again.content


def test_a_link_needs_the_form_of_its_own_page(user: User) -> None:
    token = sign_in_link_create(user=user, actor=user)
    client = Client(enforce_csrf_checks=True)
    assert client.post(f"/sign-in/link/{token}").status_code == 403
    body = client.get(f"/sign-in/link/{token}").content.decode()
    form = {"csrfmiddlewaretoken": re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', body)[1]}
    assert client.post(f"/sign-in/link/{token}", form).status_code == 302


def test_an_unknown_link_is_explained(client: Client) -> None:
    assert client.post("/sign-in/link/made-up").status_code == 410


def test_signing_in_gives_a_new_session(client: Client, user: User) -> None:
    session = client.session
    session["before"] = 1
    session.save()
    old = client.cookies["sessionid"].value
    try_password(client, PASSWORD)
    assert client.cookies["sessionid"].value != old


def test_signing_out_is_by_post_only(client: Client, user: User) -> None:
    client.force_login(user)
    assert client.get("/sign-out/").status_code == 405
    assert client.post("/sign-out/")["Location"] == "/sign-in/"
    assert "_auth_user_id" not in client.session
