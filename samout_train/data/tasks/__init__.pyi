from .base import Task as Task, task as task
