"""What the tenant's pages do: keys, limits, members, quick start and usage, each through its form."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta
from html import unescape

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from capacity.models import BooksState, HardwareType, Model, Pool, UsageRollup
from capacity.usage.rows import period_start
from serving.models import Deployment, Revision
from tenants.keys import key_digest, key_parse
from tenants.models import ApiKey, AuditEntry, Invitation, Limit, Membership, Tenant, User
from tests.web.open_pool import open_pool
from tests.web.seed import api_key, people, pool

TEXT = re.compile(r"mu_[A-Za-z0-9]{12}_[A-Za-z0-9]{43}")


@pytest.fixture
def tenant(db: None) -> Tenant:
    return people()[4]


@pytest.fixture
def sold(tenant: Tenant) -> Pool:
    return open_pool()


@pytest.fixture
def owner(client: Client, tenant: Tenant) -> Client:
    client.force_login(User.objects.get(email="owner@northwind.example"))
    return client


@pytest.fixture
def developer(tenant: Tenant) -> Client:
    user = User.objects.create_user("dev@northwind.example")
    Membership.objects.create(tenant=tenant, user=user, role="developer")
    client = Client()
    client.force_login(user)
    return client


def shown(answer: object) -> str:
    return unescape(answer.content.decode())  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------ keys
def test_a_new_keys_text_is_shown_once_and_fits_what_is_kept(owner: Client, sold: Pool) -> None:
    answer = owner.post(
        "/t/northwind/keys/new",
        {
            "name": " checkout ",
            "scopes": ["inference", "usage"],
            "models_allowed": ["chat-32b"],
            "allowed_ips": "192.0.2.0/24\n2001:db8::/32, 10.0.0.0/8",
            "ends": "30",
        },
    )
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    (text,) = set(TEXT.findall(shown(answer)))
    key = ApiKey.objects.get()
    parts = key_parse(text)
    assert parts is not None
    assert key.public_id == parts.public_id
    assert key.digest == key_digest(parts.secret, settings.PENSTOCK_KEY_PEPPERS[key.pepper])
    assert (key.name, key.scopes, key.models_allowed) == ("checkout", ["inference", "usage"], ["chat-32b"])
    assert key.allowed_ips == ["192.0.2.0/24", "2001:db8::/32", "10.0.0.0/8"]
    assert key.expires_at is not None
    assert abs(key.expires_at - timezone.now() - timedelta(days=30)) < timedelta(minutes=1)
    assert AuditEntry.objects.get(action="api_key.create").actor == "owner@northwind.example"
    for path in ("", f"{key.pk}/"):
        assert parts.secret not in shown(owner.get(f"/t/northwind/keys/{path}"))


def test_a_keys_date_goes_before_the_choice_and_is_a_whole_day(owner: Client) -> None:
    day = (timezone.now() + timedelta(days=3)).date()
    given = {"name": "k", "scopes": "inference", "ends": "365", "ends_on": day.isoformat()}
    assert owner.post("/t/northwind/keys/new", given).status_code == 200
    ends = ApiKey.objects.get().expires_at
    assert ends is not None
    assert ends.isoformat() == f"{day}T23:59:59+00:00"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": ""}, "This field is required."),
        ({"scopes": []}, "Choose one."),
        ({"scopes": ["root"]}, "root is not one of the available choices"),
        ({"allowed_ips": "192.0.2.1/24 nonsense"}, "'nonsense' is not a network"),
        ({"models_allowed": ["secret-model"]}, "secret-model is not one of the available choices"),
        ({"ends_on": "2001-01-01"}, "This day is over"),
        ({"ends": "9999"}, "9999 is not one of the available choices"),
        ({"name": "x" * 121}, "at most 120 characters"),
    ],
)
def test_what_is_wrong_with_a_key_stands_beside_its_field(
    owner: Client, sold: Pool, given: dict[str, object], said: str
) -> None:
    answer = owner.post("/t/northwind/keys/new", {"name": "kept", "scopes": ["inference"], **given})
    page = shown(answer)
    assert answer.status_code == 400
    field = next(iter(given))
    assert said in page
    assert said in page[page.index(f'id="id_{field}_error"') :][:400]
    assert not ApiKey.objects.exists()
    if field != "name":
        assert 'value="kept"' in page


def test_a_developer_gives_no_more_than_they_have(developer: Client) -> None:
    page = shown(developer.get("/t/northwind/keys/new"))
    assert 'value="manage"' not in page
    answer = developer.post("/t/northwind/keys/new", {"name": "k", "scopes": ["manage"]})
    assert answer.status_code == 400
    assert not ApiKey.objects.exists()


def test_a_developer_manages_their_own_keys_alone(developer: Client, tenant: Tenant) -> None:
    foreign = api_key(tenant, "of-others")
    assert developer.post(f"/t/northwind/keys/{foreign.pk}/revoke").status_code == 403
    assert "Ask an admin" in shown(developer.post(f"/t/northwind/keys/{foreign.pk}/rotate", {"overlap_s": "0"}))
    assert developer.post("/t/northwind/keys/new", {"name": "mine", "scopes": ["inference"]}).status_code == 200
    mine = ApiKey.objects.get(name="mine")
    assert developer.post(f"/t/northwind/keys/{mine.pk}/revoke").status_code == 302
    foreign.refresh_from_db()
    mine.refresh_from_db()
    assert foreign.revoked_at is None
    assert mine.revoked_at is not None


def test_a_developer_does_not_get_at_more_by_rotating_a_key_of_theirs(developer: Client, tenant: Tenant) -> None:
    key = api_key(tenant, "was-admin")
    ApiKey.objects.filter(pk=key.pk).update(
        scopes=["inference", "manage"], created_by=User.objects.get(email="dev@northwind.example")
    )
    answer = developer.post(f"/t/northwind/keys/{key.pk}/rotate", {"overlap_s": "3600"})
    assert answer.status_code == 403
    assert ApiKey.objects.count() == 1


def test_a_key_is_changed_where_it_stands(owner: Client, tenant: Tenant, sold: Pool) -> None:
    key = api_key(tenant, "old-name")
    given = {"name": "new-name", "scopes": ["usage"], "models_allowed": ["chat-32b"], "allowed_ips": ""}
    assert owner.post(f"/t/northwind/keys/{key.pk}/edit", given).status_code == 302
    key.refresh_from_db()
    assert (key.name, key.scopes, key.models_allowed) == ("new-name", ["usage"], ["chat-32b"])
    assert AuditEntry.objects.filter(action="api_key.update").count() == 1


def test_rotation_overlaps_and_cannot_be_done_twice(owner: Client, tenant: Tenant) -> None:
    key = api_key(tenant, "k")
    ApiKey.objects.filter(pk=key.pk).update(scopes=["inference"])
    Limit.objects.create(tenant=tenant, api_key=key, kind="concurrency", value=3, set_by="operator")
    answer = owner.post(f"/t/northwind/keys/{key.pk}/rotate", {"overlap_s": "3600"})
    assert TEXT.search(shown(answer))
    key.refresh_from_db()
    assert key.expires_at is not None
    assert abs(key.expires_at - timezone.now() - timedelta(hours=1)) < timedelta(minutes=1)
    new = ApiKey.objects.exclude(pk=key.pk).get()
    assert [(limit.value, limit.set_by) for limit in new.limits.all()] == [(3, "operator")]
    again = owner.post(f"/t/northwind/keys/{key.pk}/rotate", {"overlap_s": "3600"}, follow=True)
    assert "rotated already" in shown(again)
    assert "replaced" in shown(owner.get("/t/northwind/keys/"))
    assert ApiKey.objects.count() == 2


def test_the_list_finds_orders_and_pages(owner: Client, tenant: Tenant) -> None:
    for number in range(30):
        api_key(tenant, f"key-{number:02}")
    first, second = owner.get("/t/northwind/keys/"), owner.get("/t/northwind/keys/?page=2&order=name")
    assert "key-00" in shown(first)
    assert "key-29" not in shown(first)
    assert "key-29" in shown(second)
    assert "1–25 of 30" in shown(first)
    assert shown(owner.get("/t/northwind/keys/?order=-name")).index("key-29") > 0
    assert "key-07" in shown(owner.get("/t/northwind/keys/?q=KEY-07"))
    assert "No usable key has" in shown(owner.get("/t/northwind/keys/?q=zzz"))
    assert "No key has been revoked" in shown(owner.get("/t/northwind/keys/?state=ended"))
    assert owner.get("/t/northwind/keys/?state=odd&order=odd&page=odd&q=%00").status_code == 200


def test_limits_of_a_key(owner: Client, tenant: Tenant, sold: Pool) -> None:
    key = api_key(tenant, "k")
    path = f"/t/northwind/keys/{key.pk}"
    wrong = owner.post(f"{path}/limits", {"kind": "concurrency", "value": "0"})
    assert wrong.status_code == 400
    assert 'id="id_value_error"' in shown(wrong)
    assert owner.post(f"{path}/limits", {"kind": "concurrency", "value": "5", "model": "chat-32b"}).status_code == 302
    assert owner.post(f"{path}/limits", {"kind": "concurrency", "value": "7", "model": "chat-32b"}).status_code == 302
    limit = Limit.objects.get()
    assert (limit.value, limit.api_key, limit.model) == (7, key, "chat-32b")
    assert owner.post(f"{path}/limits/{limit.pk}/remove").status_code == 302
    assert not Limit.objects.exists()
    actions = AuditEntry.objects.filter(action__startswith="limit.").order_by("at").values_list("action", flat=True)
    assert list(actions) == ["limit.set", "limit.set", "limit.remove"]


# ------------------------------------------------------------------------------ limits, members
def test_limits_of_a_member(owner: Client, tenant: Tenant) -> None:
    member = Membership.objects.filter(tenant=tenant).exclude(role="owner").first()
    assert member
    form = {"kind": "mu_per_min", "value": "40", "member": str(member.pk)}
    assert owner.post("/t/northwind/limits/", form).status_code == 302
    limit = Limit.objects.get()
    assert (limit.member, limit.set_by, limit.value) == (member, "tenant", 40)
    page = shown(owner.get("/t/northwind/limits/"))
    assert member.user.email in page
    assert "each pool by itself" in page
    elsewhere = Membership.objects.exclude(tenant=tenant).first() or Membership.objects.create(
        tenant=Tenant.objects.create(name="Other", slug="other"), user=member.user
    )
    assert owner.post("/t/northwind/limits/", form | {"member": str(elsewhere.pk)}).status_code == 400
    assert owner.post(f"/t/northwind/limits/{limit.pk}/remove").status_code == 302
    assert not Limit.objects.exists()


def test_a_budget_shows_what_is_used_of_it(owner: Client, tenant: Tenant, sold: Pool) -> None:
    for kind in ("mu_per_month", "money_per_day"):
        assert owner.post("/t/northwind/limits/", {"kind": kind, "value": "500"}).status_code == 302
    now = timezone.now().replace(second=0, microsecond=0)
    who = {name: uuid.uuid4() for name in ("key_id", "deployment_id")}
    for period in ("minute", "hour", "day"):
        UsageRollup.objects.create(
            period=period,
            starts_at=period_start(now, period),
            tenant_id=tenant.pk,
            pool_id=sold.pk,
            service_class="best_effort",
            mu=12.5,
            money=0.75,
            **who,
        )
    BooksState.objects.update_or_create(pk=1, defaults={"final_until": now + timedelta(minutes=1)})
    page = shown(owner.get("/t/northwind/limits/"))
    assert f"12.5 used of {sold.name}, " in page
    assert "0.75 used, " in page
    assert "USD" in page


def test_limits_of_the_tenant(owner: Client, tenant: Tenant) -> None:
    assert "No limit is set" in shown(owner.get("/t/northwind/limits/"))
    assert owner.post("/t/northwind/limits/", {"kind": "tokens_per_min", "value": "9000"}).status_code == 302
    assert "9,000" in shown(owner.get("/t/northwind/limits/"))
    limit = Limit.objects.get(api_key=None)
    of_key = Limit.objects.create(
        tenant=tenant, api_key=api_key(tenant, "k"), kind="concurrency", value=1, set_by="tenant"
    )
    assert owner.post(f"/t/northwind/limits/{of_key.pk}/remove").status_code == 404
    assert owner.post(f"/t/northwind/limits/{limit.pk}/remove").status_code == 302
    assert owner.post("/t/northwind/limits/", {"kind": "tokens_per_min", "value": "9" * 30}).status_code == 400


def test_an_invitation_is_shown_once_and_its_link_opens(owner: Client, tenant: Tenant) -> None:
    given = {"email": "new@northwind.example", "role": "admin", "days": "7"}
    page = shown(owner.post("/t/northwind/members/", given))
    (link,) = set(re.findall(r"http://testserver/invitations/[\w-]+", page))
    assert "Join Northwind Bank" in shown(Client().get(link))
    assert link not in shown(owner.get("/t/northwind/members/"))
    again = owner.post("/t/northwind/members/", given)
    assert again.status_code == 400
    assert "has an open invitation" in shown(again)
    invitation = Invitation.objects.get()
    assert owner.post(f"/t/northwind/members/invitations/{invitation.pk}/revoke").status_code == 302
    assert Client().get(link).status_code == 410


def test_only_owners_make_and_unmake_owners(tenant: Tenant) -> None:
    admin = User.objects.create_user("admin@northwind.example")
    Membership.objects.create(tenant=tenant, user=admin, role="admin")
    client = Client()
    client.force_login(admin)
    page = shown(client.get("/t/northwind/members/"))
    assert '<option value="owner">' not in page
    refused = client.post("/t/northwind/members/", {"email": "x@x.example", "role": "owner", "days": "7"})
    assert refused.status_code == 400
    owner = Membership.objects.get(user__email="owner@northwind.example")
    viewer = Membership.objects.get(user__email="viewer@northwind.example")
    assert client.post(f"/t/northwind/members/{owner.pk}/remove").status_code == 403
    assert client.post(f"/t/northwind/members/{owner.pk}/role", {"role": "viewer"}).status_code == 403
    assert client.post(f"/t/northwind/members/{viewer.pk}/role", {"role": "owner"}).status_code == 403
    assert client.post(f"/t/northwind/members/{viewer.pk}/role", {"role": "developer"}).status_code == 302
    viewer.refresh_from_db()
    assert viewer.role == "developer"


def test_the_last_owner_stays_and_is_told_why(owner: Client, tenant: Tenant) -> None:
    own = Membership.objects.get(user__email="owner@northwind.example")
    for path, given in (("remove", {}), ("role", {"role": "viewer"})):
        answer = owner.post(f"/t/northwind/members/{own.pk}/{path}", given, follow=True)
        assert "keeps at least one owner" in shown(answer)
    own.refresh_from_db()
    assert own.role == "owner"


def test_everybody_may_leave(tenant: Tenant) -> None:
    client = Client()
    viewer = User.objects.get(email="viewer@northwind.example")
    client.force_login(viewer)
    member = Membership.objects.get(user=viewer)
    answer = client.post(f"/t/northwind/members/{member.pk}/remove", follow=True)
    assert "You have left Northwind Bank" in shown(answer)
    assert client.get("/t/northwind/members/").status_code == 404


def test_the_audit_log_is_of_the_tenant_alone(owner: Client, tenant: Tenant) -> None:
    assert "Nothing was changed yet" in shown(owner.get("/t/northwind/audit/"))
    owner.post("/t/northwind/keys/new", {"name": "mine", "scopes": ["inference"]})
    alder = Client()
    alder.force_login(User.objects.get(email="owner@alder.example"))
    alder.post("/t/alder/keys/new", {"name": "theirs", "scopes": ["inference"]})
    page = shown(owner.get("/t/northwind/audit/"))
    assert "api_key.create" in page
    assert "mine (mu_" in page
    assert "theirs" not in page
    assert "No entry fits" in shown(owner.get("/t/northwind/audit/?actor=nobody"))
    assert "theirs (mu_" not in shown(owner.get("/t/northwind/audit/?tenant=alder&object=theirs"))
    assert "Write a day" in shown(owner.get("/t/northwind/audit/?since=nonsense&before=nonsense"))


# ------------------------------------------------------------------------------ quick start
def test_the_lines_name_the_chosen_model_and_key(owner: Client, tenant: Tenant, sold: Pool) -> None:
    api_key(tenant, "a-key")
    chosen = api_key(tenant, "b-key")
    page = shown(owner.get(f"/t/northwind/quick-start?model=chat-32b&key={chosen.pk}"))
    assert f"export PENSTOCK_API_KEY=mu_{chosen.public_id}_YOUR-SECRET" in page
    assert page.count('"chat-32b"') >= 3
    Deployment.objects.update(is_enabled=False)
    assert '"MODEL"' in shown(owner.get("/t/northwind/quick-start"))


def test_a_key_is_made_on_the_spot(owner: Client, sold: Pool) -> None:
    answer = owner.post("/t/northwind/quick-start", {"name": ""})
    (text,) = set(TEXT.findall(shown(answer)))
    key = ApiKey.objects.get()
    assert (key.name, key.scopes) == ("quick-start", ["inference"])
    assert f"export PENSTOCK_API_KEY={text}" in shown(answer)
    assert TEXT.search(shown(owner.get("/t/northwind/quick-start"))) is None


def test_a_fresh_tenants_pages_say_what_to_do_next(owner: Client) -> None:
    assert "No key yet" in shown(owner.get("/t/northwind/keys/"))
    assert "No request yet" in shown(owner.get("/t/northwind/usage/"))
    assert "No model to talk to" in shown(owner.get("/t/northwind/playground/"))
    assert "No model is open" in shown(owner.get("/t/northwind/quick-start"))


def test_each_model_is_offered_for_what_it_can_be_asked(owner: Client, tenant: Tenant, sold: Pool) -> None:
    hardware = HardwareType.objects.get()
    model = Model.objects.create(slug="e", name="E", artifact_kind="tiny", artifact_value="embed")
    vectors = pool("vectors", model, hardware, calibrated=False, now=timezone.now())
    made = Deployment.objects.create(pool=vectors, name="a-vectors")
    Revision.objects.create(deployment=made, number=1, runtime="vllm", options={"task": "embed"}, target_concurrency=8)
    start = reverse("tenant-quickstart", args=[tenant.slug])
    page = shown(owner.get(start))
    assert "chat/completions" in page, "a model that chats is offered first"
    page = shown(owner.get(f"{start}?model=a-vectors"))
    assert "client.embeddings.create" in page
    assert "chat/completions" not in page
    page = shown(owner.get(reverse("tenant-playground", args=[tenant.slug])))
    assert 'value="chat-32b"' in page
    assert "a-vectors" not in page
