from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0010_budgets"),
    ]

    operations = [
        migrations.AddField(
            model_name="tenant",
            name="best_effort",
            field=models.BooleanField(
                default=True,
                help_text="It may use pools beyond what it has reserved of them, as best effort.",
                verbose_name="may borrow",
            ),
        ),
    ]
