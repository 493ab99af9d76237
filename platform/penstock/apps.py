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
        sources = import_module("capacity.stocks").sources
        stock_of = import_module("penstock.selling").stock_of
        if stock_of not in sources:
            sources.append(stock_of)
        budgets = import_module("tenants.budgets").sources
        budget_states = import_module("penstock.budgets").budget_states
        if budget_states not in budgets:
            budgets.append(budget_states)
        refusals = import_module("capacity.refusals").sources
        refusal_of = import_module("penstock.refusals").refusal_of
        if refusal_of not in refusals:
            refusals.append(refusal_of)
