"""``manage.py seed_demo``: enrol this host and, on an empty database, make the demo."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from penstock.demo import local_host_enrol, operator_link, seed_demo


class Command(BaseCommand):
    help = "Enrol this host and, on an empty database, make the demo. What is there stays."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--engine", choices=("vllm", "simulated"), default="vllm")
        parser.add_argument("--model", default="", help="a local folder or a hub id, instead of the built-in model")
        parser.add_argument("--json", action="store_true", help="print the outcome, keys included, as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            host = local_host_enrol(settings.DATA)
            result = seed_demo(engine=options["engine"], model=options["model"])
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        token = result.sign_in_token or operator_link()
        if options["json"]:
            self.stdout.write(json.dumps({**asdict(result), "host": host.name, "sign_in_token": token}))
            return
        self.stdout.write(f"host {host.name} is enrolled")
        for tenant in result.tenants:
            self.stdout.write(f"tenant {tenant.name}: {tenant.api_key} (shown once)")
        if not result.is_new:
            self.stdout.write("the database is not empty: nothing was seeded")
