//! A station of a device: P servers and a queue that the scheduler orders.

use std::collections::VecDeque;

use blkpilot_env::sim::network::Discipline;

#[derive(Debug)]
pub(crate) struct Station {
    servers: usize,
    discipline: Discipline,
    /// Requests waiting by class and direction, with the number they arrived under.
    queues: Vec<[VecDeque<(u64, usize)>; 2]>,
    in_service: Vec<usize>,
    busy: usize,
    arrivals: u64,
    reads_in_a_row: usize,
    next_class: usize,
    at: f64,
    pub(crate) busy_s: f64,
}

impl Station {
    pub(crate) fn new(servers: usize, discipline: Discipline, classes: usize) -> Self {
        Self {
            servers,
            discipline,
            queues: (0..classes).map(|_| Default::default()).collect(),
            in_service: vec![0; classes],
            busy: 0,
            arrivals: 0,
            reads_in_a_row: 0,
            next_class: 0,
            at: 0.0,
            busy_s: 0.0,
        }
    }

    pub(crate) fn advance(&mut self, now: f64) {
        self.busy_s += (now - self.at) * self.busy as f64;
        self.at = now;
    }

    pub(crate) fn arrive(&mut self, request: usize, class: usize, direction: usize) {
        self.arrivals += 1;
        self.queues[class][direction].push_back((self.arrivals, request));
    }

    pub(crate) fn depart(&mut self, class: usize, now: f64) {
        self.advance(now);
        self.busy -= 1;
        self.in_service[class] -= 1;
    }

    /// Takes the request that a free server serves next.
    pub(crate) fn next(&mut self, now: f64) -> Option<usize> {
        if self.busy == self.servers {
            return None;
        }
        let (class, direction) = self.choose()?;
        self.advance(now);
        let (_, request) = self.queues[class][direction].pop_front()?;
        self.busy += 1;
        self.in_service[class] += 1;
        self.reads_in_a_row = if direction == 0 {
            self.reads_in_a_row + 1
        } else {
            0
        };
        self.next_class = class + 1;
        Some(request)
    }

    fn choose(&self) -> Option<(usize, usize)> {
        let oldest = |direction: usize| {
            let queues = self.queues.iter().enumerate();
            queues
                .filter_map(|(class, q)| Some((q[direction].front()?.0, class)))
                .min()
                .map(|(number, class)| (number, class, direction))
        };
        let (read, write) = (oldest(0), oldest(1));
        let chosen = match self.discipline {
            Discipline::Fair => return self.least_served(),
            Discipline::Fifo => [read, write].into_iter().flatten().min(),
            Discipline::ReadsFirst { reads_per_write }
                if self.reads_in_a_row as f64 >= reads_per_write =>
            {
                write.or(read)
            }
            Discipline::ReadsFirst { .. } => read.or(write),
        };
        chosen.map(|(_, class, direction)| (class, direction))
    }

    /// The class with the least in service, in turn among equals; its oldest request.
    fn least_served(&self) -> Option<(usize, usize)> {
        let classes = self.queues.len();
        let class = (0..classes)
            .map(|turn| (self.next_class + turn) % classes)
            .filter(|class| self.queues[*class].iter().any(|q| !q.is_empty()))
            .min_by_key(|class| self.in_service[*class])?;
        let number = |d: usize| self.queues[class][d].front().map_or(u64::MAX, |f| f.0);
        Some((class, usize::from(number(1) < number(0))))
    }
}
