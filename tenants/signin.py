"""Sign-in by password, slowed down against guessing, and by one-time link."""

import datetime
from dataclasses import dataclass

from django.contrib.auth import authenticate
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import salted_hmac

from tenants.audit import audit
from tenants.models import SignInAttempt, User
from tenants.policy.sign_in import WINDOW_S, Failures, Verdict, judge
from tenants.services.links import SignInLinkError, sign_in_link_redeem

__all__ = ["SignIn", "SignInLinkError", "attempts_delete_old", "sign_in_by_password", "sign_in_link_redeem"]

WRONG = "E-mail address or password is wrong."
"""The same words whether or not there is such a user."""


@dataclass(frozen=True, slots=True)
class SignIn:
    """``user`` is None when refused; ``message`` is for people; ``retry_after_s`` is set while sign-in pauses."""

    user: User | None
    message: str = ""
    retry_after_s: float = 0.0


def sign_in_by_password(*, email: str, password: str, address: str, request: HttpRequest | None = None) -> SignIn:
    """Check a password. ``address`` is the client's IP address.

    The try is written down before the count is taken and the password looked at, so that tries at the same time
    cannot slip past the limit together. Not inside a transaction, which would hide them from each other.
    """
    now = timezone.now()
    account, place = _digest(email.strip().lower()), _digest(address)
    attempt = SignInAttempt.objects.create(at=now, account=account, address=place)
    verdict = _verdict(attempt, now)
    if not verdict.allowed:
        # A try that was not looked at does not prolong the pause.
        attempt.delete()
        minutes = max(1, round(verdict.retry_after_s / 60))
        message = f"Too many wrong passwords. Try again in {minutes} min, or ask for a one-time link."
        return SignIn(None, message, verdict.retry_after_s)
    user = authenticate(request, username=email.strip(), password=password)
    if not isinstance(user, User):
        return SignIn(None, WRONG)
    SignInAttempt.objects.filter(pk=attempt.pk).update(succeeded=True)
    audit(actor=user, action="user.sign_in", target=user)
    return SignIn(user)


def attempts_delete_old(*, now: datetime.datetime) -> int:
    """Forget tries that no limit looks at any more. Returns how many."""
    return SignInAttempt.objects.filter(at__lt=now - datetime.timedelta(seconds=2 * WINDOW_S)).delete()[0]


def _verdict(attempt: SignInAttempt, now: datetime.datetime) -> Verdict:
    """Judge on the other failures; those of this very moment count too, whoever was first."""
    since = now - datetime.timedelta(seconds=WINDOW_S)
    others = SignInAttempt.objects.filter(at__gt=since, succeeded=False).exclude(pk=attempt.pk)
    of_account = list(others.filter(account=attempt.account).values_list("at", "address"))
    of_address = list(others.filter(address=attempt.address).values_list("at", flat=True))
    failures = Failures(
        account=tuple(at.timestamp() for at, _ in of_account),
        address=tuple(at.timestamp() for at in of_address),
        pair=tuple(at.timestamp() for at, address in of_account if address == attempt.address),
    )
    return judge(failures, now=now.timestamp())


def _digest(text: str) -> str:
    """Keyed: there are few enough addresses to try them all against a plain digest."""
    return salted_hmac("tenants.signin", text, algorithm="sha256").hexdigest()
