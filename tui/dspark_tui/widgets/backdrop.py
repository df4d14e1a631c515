"""What holds a growing text: it is laid out once a frame, and costs little to draw."""

from textual.geometry import Region, Size
from textual.reactive import var
from textual.strip import Strip
from textual.widget import Widget


def filtered(widget: Widget, strip: Strip) -> Strip:
    """As the terminal shows it, such as without colours."""
    for line_filter in widget.get_line_filters():
        strip = strip.apply_filter(line_filter, widget.background_colors[1])
    return strip


class Backdrop(Widget):
    """A container without a border: all its rows are one strip, which Textual cuts once."""

    # Textual's own lays out the screen a second time when a container has grown.
    virtual_size = var(Size(0, 0))

    def render_lines(self, crop: Region) -> list[Strip]:
        blank = Strip.blank(crop.width, self.visual_style.rich_style)
        return [filtered(self, blank)] * crop.height
