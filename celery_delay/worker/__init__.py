"""What happens in workers: tasks journalled, revokes obeyed, keys given back."""
