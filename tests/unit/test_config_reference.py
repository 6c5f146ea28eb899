"""Comments of the config's source, which become docs/CONFIG.md."""

from wam_jax.config import reference as config_reference


def test_comments_of_a_config():
  source = '''
def f():
  """c.not_this = 1  # nor this"""
  c = ConfigDict()
  c.plain = 1

  # Stands above,
  # in two lines.
  g = c.group = ConfigDict()
  g.one = (
    1  # inside
  )
  # Above; and
  g.two = 2  # beside: "# not a comment"
  other = 4  # of nothing
'''
  assert config_reference.comments(source) == {
    "group": "Stands above, in two lines.",
    "group.one": "inside",
    "group.two": 'Above; and beside: "# not a comment"',
  }
