"""Parse HTML pages, and check that they load nothing."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.content = content
        self.text = ""
        self.open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def values(self, tag: str, name: str) -> list[str]:
        return [attributes[name] or "" for own, attributes in self.elements if own == tag]

    def check_is_self_contained(self) -> None:
        """Check that tags match, that nothing is loaded or run, and that links have targets."""
        assert self.open == []
        for tag, attributes in self.elements:
            for name in ("src", "href", "srcset", "data", "action"):
                value = attributes.get(name)
                allowed = value is None or value.startswith(("data:image/jpeg;base64,", "#"))
                assert allowed, (tag, value)
            assert tag not in ("script", "link", "iframe", "object")
            assert not [name for name in attributes if name.startswith("on")]
        assert "url(" not in self.content
        assert "@import" not in self.content
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert {link.removeprefix("#") for link in self.values("a", "href")} <= set(ids)
