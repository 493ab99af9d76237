from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("capacity", "0009_prices_in_money"),
    ]

    operations = [
        migrations.AddField(
            model_name="pool",
            name="best_effort",
            field=models.BooleanField(
                default=True,
                help_text="What nobody has reserved, or its owner does not use, is lent as best effort.",
                verbose_name="lends",
            ),
        ),
    ]
