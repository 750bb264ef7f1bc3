from django.db import models


class Order(models.Model):
    state = models.CharField(max_length=20, default="open")
    #: Task id of what will cancel it.
    cancellation = models.CharField(max_length=36)

    class Meta:
        app_label = "shop"
