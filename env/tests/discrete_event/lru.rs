//! An LRU cache over the pages of several disks.

const NONE: usize = usize::MAX;

#[derive(Debug, Clone, Copy)]
struct Page {
    newer: usize,
    older: usize,
    is_resident: bool,
    bytes: f64,
}

#[derive(Debug)]
pub(crate) struct Lru {
    pages: Vec<Page>,
    newest: usize,
    oldest: usize,
    free_bytes: f64,
}

impl Lru {
    /// A cache of `bytes` for pages of the given sizes.
    pub(crate) fn new(bytes: f64, page_bytes: impl Iterator<Item = f64>) -> Self {
        let page = |bytes| Page {
            newer: NONE,
            older: NONE,
            is_resident: false,
            bytes,
        };
        Self {
            pages: page_bytes.map(page).collect(),
            newest: NONE,
            oldest: NONE,
            free_bytes: bytes,
        }
    }

    /// References a page; returns whether it was resident.
    pub(crate) fn reference(&mut self, page: usize) -> bool {
        let hit = self.pages[page].is_resident;
        if hit {
            self.unlink(page);
        }
        self.free_bytes -= self.pages[page].bytes;
        while self.free_bytes < 0.0 && self.oldest != NONE {
            self.unlink(self.oldest);
        }
        self.link(page);
        hit
    }

    fn unlink(&mut self, page: usize) {
        let Page { newer, older, .. } = self.pages[page];
        match newer {
            NONE => self.newest = older,
            n => self.pages[n].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            o => self.pages[o].newer = newer,
        }
        self.pages[page].is_resident = false;
        self.free_bytes += self.pages[page].bytes;
    }

    fn link(&mut self, page: usize) {
        self.pages[page].newer = NONE;
        self.pages[page].older = self.newest;
        self.pages[page].is_resident = true;
        match self.newest {
            NONE => self.oldest = page,
            n => self.pages[n].newer = page,
        }
        self.newest = page;
    }
}
