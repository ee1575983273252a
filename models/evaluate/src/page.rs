//! What pages of results have in common: one file each, without scripts, and nothing that is fetched. Light or dark as
//! the reader's system is, and black on white on paper.

use std::fmt::{self, Display, Write as _};

/// Colours of the pages are variables, so that drawings within them follow: `--ink`, `--paper`, `--soft` (a quiet
/// background), `--line`, `--dim` (less important text), and `--s0` to `--s7` for series.
pub const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1f2430;--paper:#fff;--soft:#f4f5f8;--line:#d8dce4;--dim:#5f6b7c;--good:#1a7f37;--bad:#b42318;\
--s0:#2463aa;--s1:#c4571b;--s2:#2b8257;--s3:#7d4fc2;--s4:#a67c00;--s5:#b8336a;--s6:#0d7d8c;--s7:#6b7280}\
@media (prefers-color-scheme:dark){:root{--ink:#e5e8ee;--paper:#14171c;--soft:#1e232b;--line:#39414e;--dim:#9aa5b4;--good:#4ac26b;\
--bad:#ff7b72;--s0:#74ade8;--s1:#f0935a;--s2:#6fc79b;--s3:#b79af0;--s4:#dcb84a;--s5:#f083ab;--s6:#5cc8d6;--s7:#a3acb9}}\
@media print{:root{color-scheme:light;--ink:#000;--paper:#fff;--soft:#f4f5f8;--line:#bbb;--dim:#444;--good:#1a7f37;--bad:#b42318;\
--s0:#2463aa;--s1:#c4571b;--s2:#2b8257;--s3:#7d4fc2;--s4:#a67c00;--s5:#b8336a;--s6:#0d7d8c;--s7:#6b7280}\
body{max-width:none;margin:0;font-size:10pt}h2{break-after:avoid}svg,tr,figure{break-inside:avoid}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:var(--ink);background:var(--paper)}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}h3{font-size:1rem}.verdict{padding:.8rem 1rem;\
border-left:.4rem solid var(--dim);background:var(--soft)}.better{border-color:var(--good)}.worse{border-color:var(--bad)}\
table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid var(--line)}\
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto;color:var(--ink)}svg text{font-family:system-ui,sans-serif}";

/// Text of somebody else's, such as a policy's name, made harmless.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a>(pub &'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Begins a page; `style` is added to [`STYLE`].
///
/// # Errors
/// Those of the writer.
pub fn begin(page: &mut impl fmt::Write, title: &str, style: &str) -> fmt::Result {
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
<title>{}</title><style>{STYLE}{style}</style></head><body>\n",
        Text(title)
    )
}

/// Ends a page.
///
/// # Errors
/// Those of the writer.
pub fn end(page: &mut impl fmt::Write) -> fmt::Result {
    page.write_str("</body></html>\n")
}

/// Begins a drawing of so many units, one of which is a pixel where there is room; `label` is for those who cannot see.
///
/// # Errors
/// Those of the writer.
pub fn begin_drawing(
    page: &mut impl fmt::Write,
    (width, height): (f64, f64),
    label: &str,
) -> fmt::Result {
    write!(
        page,
        "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{}\" \
fill=\"currentColor\" font-size=\"12\">",
        Text(label)
    )
}
