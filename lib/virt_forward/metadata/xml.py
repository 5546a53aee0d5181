"""Reading XML that others may edit: no entities, no external references, no huge documents."""

from virt_forward.errors import VirtForwardError
from virt_forward.metadata.etree import etree
from virt_forward.text import output

MAX_BYTES = 4 * 1024 * 1024
"""No domain or network XML comes near this; a document beyond it is refused unread."""


def parse(data: bytes, what: str, *, comments: bool = False) -> etree._Element:
    """Parse ``data`` and return its root element; without comments, unless they are to be kept.

    ``what`` names the document in error messages. Raises VirtForwardError for anything
    that is not well-formed, is too large or too deep (libxml2 stops at 256 levels), or
    carries a document type declaration.
    """
    if len(data) > MAX_BYTES:
        raise VirtForwardError(f"{what}: larger than {MAX_BYTES} bytes; refused unread")
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=not comments,
        remove_pis=not comments,
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise VirtForwardError(f"{what}: not well-formed XML: {output(str(error))}") from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise VirtForwardError(f"{what}: has a document type declaration (<!DOCTYPE>); remove it")
    return root


def text(element: etree._Element | None) -> str:
    """Return the text of an element, or an empty string where there is no element."""
    return "" if element is None else (element.text or "").strip()
