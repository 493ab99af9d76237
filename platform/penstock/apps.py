from importlib import import_module

from django.apps import AppConfig


class PenstockConfig(AppConfig):
    name = "penstock"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        import_module("penstock.checks")
        hooks = import_module("tenants.changes").on_commit_hooks
        nudge = import_module("penstock.publish").nudge
        if nudge not in hooks:
            hooks.append(nudge)
