from django.apps import AppConfig


class PenstockConfig(AppConfig):
    name = "penstock"
    default_auto_field = "django.db.models.BigAutoField"
