import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")


@app.task
def fulfil(order_id):
    from django.db import transaction

    from .models import Order

    with transaction.atomic():
        order = Order.objects.select_for_update().get(pk=order_id)
        order.state = "fulfilled"
        order.save()
