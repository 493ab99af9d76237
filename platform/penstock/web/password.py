"""One's own password, in the look of the admin, by the service that keeps the audit entry."""

from django.contrib import admin
from django.contrib.auth.views import PasswordChangeView
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import reverse
from unfold.forms import AdminOwnPasswordChangeForm

from tenants.models import User
from tenants.services import user_set_password


class OwnPasswordForm(AdminOwnPasswordChangeForm):  # type: ignore[misc]  # the theme has no types
    user: User

    def save(self, commit: bool = True) -> User:
        user_set_password(user=self.user, password=self.cleaned_data["new_password1"], actor=self.user)
        return self.user


def own_password(request: HttpRequest) -> HttpResponseBase:
    """In the place of the admin's own view, which writes past the service."""
    view = PasswordChangeView.as_view(
        form_class=OwnPasswordForm,
        success_url=reverse("admin:password_change_done"),
        extra_context=admin.site.each_context(request),
    )
    return view(request)
