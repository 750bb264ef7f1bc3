"""What beats do again and again: one ``run_once`` each.  They know only ports."""
