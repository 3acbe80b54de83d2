#!/usr/bin/env python3
"""Makes the texts: text/test.txt and text/calib.txt (shipped) and the training text
for train_language.py (not shipped).

Data: the Debian packages linux-doc-6.1, postgresql-doc-15, sqlite3-doc,
python3.11-doc, and perl-doc with perl-modules-5.36 and libperl5.36 (versions in
README.md).  test.txt and calib.txt are whole pages of the SQLite and PostgreSQL
documentation, chosen by the hash of their name and left out of training.
Paragraphs of the held-out pages that also stand in the training text, exactly or
nearly (more than 30 % of their 8-word sequences), are dropped.

Run:  python3 make_text.py [WORK]       WORK (default: build) receives train.txt,
                                        and same.txt, training pages of the same
                                        two sources, to compare losses

Printed: test 286385 bytes, 21 pages; calib 377102 bytes, 30 pages; training text
4579 documents, linux 20.2, python 8.4, perl 8.1, postgresql 5.8, sqlite 4.6 MB.
"""
import glob, gzip, hashlib, os, re, sys
from html.parser import HTMLParser

HERE = os.path.dirname(os.path.abspath(__file__))
WORK = sys.argv[1] if len(sys.argv) > 1 else "build"
DOC = "/usr/share/doc"
TEST, CALIB, SAME = 260_000, 360_000, 260_000      # sizes in bytes
END_OF_DOC = "\n\x00\n"                            # separates documents in train.txt


class Text(HTMLParser):
    """HTML to plain paragraphs separated by blank lines."""
    BLOCK = {"p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "dt", "dd", "li",
             "table", "tr", "blockquote", "section", "center", "hr"}
    SKIP = {"script", "style", "head", "svg", "nav", "button", "form"}
    SKIP_CLASS = {"navheader", "navfooter", "nosearch", "toc", "headerlink", "sphinxsidebar",
                  "related", "footer", "fancy_toc", "mobile-nav", "index", "simplesect_toc", "id_link", "toctree-wrapper", "contents",
                  "imgcontainer"}
    VOID = {"br", "img", "hr", "meta", "link", "input", "col", "wbr", "area", "base"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.out, self.skip, self.tag, self.pre = [], 0, "", 0

    def handle_starttag(self, tag, attrs):
        if self.skip:
            self.skip += tag == self.tag
            return
        classes = set((dict(attrs).get("class") or "").split())
        if tag in self.SKIP or (classes & self.SKIP_CLASS and tag not in self.VOID):
            self.skip, self.tag = 1, tag
        elif tag == "pre":
            self.pre += 1
            self.out.append("\n\n")
        elif tag == "br":
            self.out.append("\n")
        elif tag in ("td", "th"):
            self.out.append("  ")
        elif tag in self.BLOCK:
            self.out.append("\n\n")

    def handle_endtag(self, tag):
        if self.skip:
            self.skip -= tag == self.tag
        elif tag == "pre":
            self.pre = max(0, self.pre - 1)
            self.out.append("\n\n")
        elif tag in self.BLOCK:
            self.out.append("\n\n")

    def handle_data(self, data):
        if not self.skip:
            self.out.append(data if self.pre else re.sub(r"\s+", " ", data))


def html(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        parser = Text()
        parser.feed(f.read())
        parser.close()
    return "".join(parser.out)


def plain(path):
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as f:
        return f.read().decode("utf-8", "replace")


def pod(path):
    text = re.sub(r"\n=encoding .*\n", "\n", plain(path))
    for _ in range(4):      # formatting codes, innermost first
        text = re.sub(r"\bE<gt>", "\x01", re.sub(r"\bE<lt>", "\x02", text))
        text = re.sub(r"\bX<[^<>]*>", "", text)
        text = re.sub(r"\b[BCFILSZ]<<+ (.*?) >>+", r"\1", text)
        text = re.sub(r"\b[BCFILSZ]<([^<>]*)>", r"\1", text)
    text = text.replace("\x01", ">").replace("\x02", "<")
    return re.sub(r"\n=(head\d|item|over|back|cut|pod|for|begin|end)\b ?", "\n", text)


def paragraphs(text):
    """Cleans a document: paragraphs of plain text without tables and rulers."""
    text = text.replace("\r", "").replace("\u00a0", " ").replace("\u00b6", "").expandtabs(8)
    keep = []
    for part in re.split(r"\n\s*\n", text):
        lines = [line.rstrip() for line in part.split("\n")]
        lines = [x for x in lines if x and not re.fullmatch(r"[\s=\-~^*+#.'\"`|_]{3,}", x)]
        part = "\n".join(lines).strip("\n")
        if not lines or not part.strip():
            continue
        good = sum(c.isalpha() or c in " \n,." for c in part)
        if good < 0.75 * len(part) or sum(ord(c) > 127 for c in part) > 0.02 * len(part):
            continue
        keep.append(part if "\n" in part else part.strip())
    out, run = [], []       # lists of four or more bare words or names are dropped too
    for part in keep + [None]:
        if part is not None and len(part.split()) < 4:
            run.append(part)
            continue
        out += run if len(run) < 4 else []
        out += [part] if part is not None else []
        run = []
    return out


def documents():
    """Yields (source, name, paragraphs)."""
    base = f"{DOC}/linux-doc-6.1/Documentation"
    for path in sorted(glob.glob(f"{base}/**/*.gz", recursive=True)):
        name = os.path.relpath(path, base)
        if re.search(r"\.(rst|txt)\.gz$", name) and not re.match(r"translations|devicetree/bindings|ABI|features/", name):
            yield "linux", name, paragraphs(plain(path))
    base = f"{DOC}/postgresql-doc-15/html"
    for path in sorted(glob.glob(f"{base}/*.html")):
        yield "postgresql", os.path.relpath(path, base), paragraphs(html(path))
    base = f"{DOC}/sqlite3"
    for path in sorted(glob.glob(f"{base}/**/*.html", recursive=True)):
        yield "sqlite", os.path.relpath(path, base), paragraphs(html(path))
    base = f"{DOC}/python3.11/html"
    for path in sorted(glob.glob(f"{base}/**/*.html", recursive=True)):
        name = os.path.relpath(path, base)
        if not re.match(r"genindex|search|contents|py-modindex", name):
            yield "python", name, paragraphs(html(path))
    for base in ["/usr/share/perl/5.36.0"] + glob.glob("/usr/lib/*-linux-gnu*/perl/5.36.0"):
        for path in sorted(glob.glob(f"{base}/**/*.pod", recursive=True)):
            yield "perl", os.path.relpath(path, base), paragraphs(pod(path))


NOT_HELD_OUT = {
    "postgresql": r"release|catalog|view|features|sql-keywords|errcodes|bookindex|biblio|index|acronyms|unsupported|infoschema|contrib|functions-",
    "sqlite": r"c3ref|releaselog|syntax|chronology|changes|fullpage|index|toc|hlr|req|matrix|session/|keyword|doclist|sitemap|mostdeployed|books|support|prosupport|dev|consortium|testimonials|copyright|rescode|docs|cves|lang_expr|capi3|.*[a-z]pragma|speed"}


def words(text):
    return re.findall(r"\w+", text.lower())


def shingles(text, n=8):
    w = words(text)
    return [hash(tuple(w[i:i + n])) for i in range(max(1, len(w) - n + 1))]


def main():
    os.makedirs(WORK, exist_ok=True)
    os.makedirs(f"{HERE}/text", exist_ok=True)
    docs, seen = [], set()
    for source, name, parts in documents():
        fresh = []
        for part in parts:      # exact repetitions of a paragraph are kept once
            key = " ".join(words(part))
            if len(key) > 40 and key in seen:
                continue
            seen.add(key)
            fresh.append(part)
        text = "\n\n".join(fresh)
        if len(text) >= 400:
            docs.append((source, name, text))

    def rank(d):
        return hashlib.sha1(f"{d[0]}/{d[1]}".encode()).hexdigest()
    parts = {"test": [], "calib": [], "same": []}
    used = set()
    for source in ("sqlite", "postgresql"):
        pool = sorted((d for d in docs if d[0] == source and 4000 <= len(d[2]) <= 60000
                       and not re.match(NOT_HELD_OUT[source], d[1])), key=rank)
        for part, size in (("test", TEST), ("calib", CALIB), ("same", SAME)):
            got = 0
            while pool and got < size * 0.55:
                d = pool.pop(0)
                parts[part].append(d)
                got += len(d[2].encode())
                if part != "same":
                    used.add(d[:2])

    train = [d for d in docs if d[:2] not in used]
    known = set()
    for d in train:
        for part in d[2].split("\n\n"):
            known.update(shingles(part))
    print("documents", len(docs), "training", len(train))
    for part in ("test", "calib"):
        out, dropped = [], 0
        for source, name, text in parts[part]:
            keep = []
            for p in text.split("\n\n"):
                s = shingles(p)
                if len(words(p)) >= 8 and sum(x in known for x in s) > 0.3 * len(s):
                    dropped += 1
                    continue
                keep.append(p)
            out.append("\n\n".join(keep))
            known.update(x for p in keep for x in shingles(p))      # calib against test too
        data = "\n\n".join(out) + "\n"
        with open(f"{HERE}/text/{part}.txt", "w", encoding="utf-8") as f:
            f.write(data)
        print(part, len(data.encode()), "bytes,", len(out), "pages,", dropped, "paragraphs dropped")
        print("  " + " ".join(f"{s}/{n}" for s, n, _ in parts[part]))
    with open(f"{WORK}/same.txt", "w", encoding="utf-8") as f:
        f.write("\n\n".join(d[2] for d in parts["same"]) + "\n")
    train.sort(key=rank)
    with open(f"{WORK}/train.txt", "w", encoding="utf-8") as f:
        f.write(END_OF_DOC.join(d[2] for d in train))
    for source in ("linux", "postgresql", "sqlite", "python", "perl"):
        sizes = [len(d[2].encode()) for d in train if d[0] == source]
        print(f"train {source}: {len(sizes)} documents, {sum(sizes)} bytes")


if __name__ == "__main__":
    main()
