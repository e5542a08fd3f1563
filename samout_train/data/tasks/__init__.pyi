from .base import task as task
