//! What becomes of something, for those who follow it: a ring of messages from which each reads at its own pace.
//! Whoever tells waits for nobody, and one who is slow learns how many messages it has missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use uuid::Uuid;

use crate::wire::status::Failure;

/// Messages that are kept for those who are slow, or come back.
pub(crate) const MOST_MESSAGES: usize = 256;

/// The number of the last message, and whether it is the last of all.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct News {
    pub(crate) number: u64,
    pub(crate) is_done: bool,
}

#[derive(Debug)]
struct State<T> {
    shown: T,
    messages: VecDeque<(u64, T)>,
}

/// What becomes of one thing.
#[derive(Debug)]
pub(crate) struct Feed<T> {
    state: Mutex<State<T>>,
    news: watch::Sender<News>,
}

impl<T: Clone> Feed<T> {
    /// Of a thing that stands so; there is no message yet.
    pub(crate) fn new(shown: T) -> Arc<Self> {
        Self::of(shown, VecDeque::new(), News::default())
    }

    /// Of a thing that was done after so many messages, and begins again.
    pub(crate) fn behind(number: u64, shown: T) -> Arc<Self> {
        let news = News {
            number,
            is_done: false,
        };
        Self::of(shown, VecDeque::new(), news)
    }

    /// Of one that was done long ago, after so many messages.
    pub(crate) fn done(last: T, number: u64) -> Arc<Self> {
        let messages = VecDeque::from([(number, last.clone())]);
        let news = News {
            number,
            is_done: true,
        };
        Self::of(last, messages, news)
    }

    fn of(shown: T, messages: VecDeque<(u64, T)>, news: News) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { shown, messages }),
            news: watch::Sender::new(news),
        })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands.
    pub(crate) fn shown(&self) -> T {
        self.state().shown.clone()
    }

    /// Hears of each message.
    pub(crate) fn news(&self) -> watch::Receiver<News> {
        self.news.subscribe()
    }

    /// The number that the next message will have.
    pub(crate) fn next_number(&self) -> u64 {
        self.news.borrow().number + 1
    }

    /// Says how it stands now, and whether that is the last there is to say. Waits for nobody.
    pub(crate) fn tell(&self, shown: T, is_done: bool) {
        let mut state = self.state();
        let number = self.next_number();
        if state.messages.len() == MOST_MESSAGES {
            state.messages.pop_front();
        }
        state.messages.push_back((number, shown.clone()));
        state.shown = shown;
        // Under the lock, so that numbers and messages go together.
        self.news.send_replace(News { number, is_done });
    }
}

/// Tells the messages of one thing, in one run of the service, from all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stem {
    /// The last segment of its name; has no dot.
    pub(crate) id: String,
    /// Of the service.
    pub(crate) run: Uuid,
}

impl Stem {
    fn token(&self, number: u64) -> String {
        format!("{}.{}.{number}", self.id, self.run)
    }

    /// The number of the last message that a token names; `None` for an empty one, and for one of another run.
    ///
    /// # Errors
    /// A violation of `resume_token`.
    fn number(&self, token: &str) -> Result<Option<u64>, Failure> {
        if token.is_empty() {
            return Ok(None);
        }
        let wrong = |problem: &str| {
            let problem = format!("\"{token}\" {problem}: start with an empty one");
            Failure::field("resume_token", problem)
        };
        let parts: Vec<&str> = token.split('.').collect();
        let [id, run, number] = parts[..] else {
            return Err(wrong("is none of ours"));
        };
        let number: u64 = number.parse().map_err(|_| wrong("is none of ours"))?;
        if id != self.id {
            return Err(wrong("is of something else"));
        }
        Ok((run.parse() == Ok(self.run)).then_some(number))
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message<T> {
    /// The thing, as it was then.
    pub value: T,
    /// Goes on behind this message.
    pub token: String,
    /// Messages before it that are lost to this follower.
    pub missed: u64,
}

/// The messages of a thing, for one follower.
#[derive(Debug)]
pub struct Messages<T> {
    feed: Arc<Feed<T>>,
    /// The last that was taken; `None` before the first, which is how it stands.
    after: Option<u64>,
    stem: Stem,
}

impl<T: Clone> Messages<T> {
    /// Those behind a token; an empty one stands for what comes from now on.
    ///
    /// # Errors
    /// A violation of `resume_token`.
    pub(crate) fn behind(feed: Arc<Feed<T>>, stem: Stem, token: &str) -> Result<Self, Failure> {
        let after = stem.number(token)?;
        Ok(Self { feed, after, stem })
    }

    /// The next message, once there is one; `None` behind the last.
    pub async fn next(&mut self) -> Option<Message<T>> {
        let mut news = self.feed.news();
        loop {
            let is_done = news.borrow_and_update().is_done;
            if let Some(message) = self.take() {
                return Some(message);
            }
            if is_done || news.changed().await.is_err() {
                return None;
            }
        }
    }

    fn take(&mut self) -> Option<Message<T>> {
        let state = self.feed.state();
        let (number, value, missed) = match self.after {
            None => (self.feed.news.borrow().number, state.shown.clone(), 0),
            Some(after) => {
                let mut messages = state.messages.iter();
                let (number, value) = messages.find(|(number, _)| *number > after)?;
                (*number, value.clone(), number - after - 1)
            }
        };
        drop(state);
        self.after = Some(number);
        Some(Message {
            token: self.stem.token(number),
            value,
            missed,
        })
    }
}
