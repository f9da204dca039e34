"""How good masks are: metrics, their means and intervals, adapters beside each other."""
