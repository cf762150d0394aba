import json

from django.http import JsonResponse
from django.shortcuts import get_object_or_404

from .models import Order
from .tasks import fulfil


def create(request):
    order = Order.objects.create(item=json.loads(request.body)["item"])
    request.session["last"] = order.id
    fulfil.delay(order.id)
    return JsonResponse({"id": order.id}, status=201)


def show(request, order_id):
    order = get_object_or_404(Order, pk=order_id)
    return JsonResponse({"id": order.id, "item": order.item, "state": order.state})
