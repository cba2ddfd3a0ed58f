"""Parsing XML that may be hostile: no entities, no network, no DTD, bounded size."""

from lxml import etree

from isthmus.errors import InputError

MAX_ELEMENTS = 200_000


def parse(data: bytes, *, where: str) -> etree._Element:
    """The root of a document.

    :raises InputError: not well-formed, or absurdly large.
    """
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise InputError(
            f"{where}: {' '.join(str(error).split())[:200]}",
            remedy="name a well-formed XML document",
        ) from error
    if root is None:
        raise InputError(f"{where}: empty", remedy="name a well-formed XML document")
    if sum(1 for _ in root.iter()) > MAX_ELEMENTS:
        raise InputError(
            f"{where}: more than {MAX_ELEMENTS} elements", remedy="name the right file"
        )
    return root
