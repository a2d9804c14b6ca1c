//! Whose texts are computed next.
//!
//! Invariants: at most [`WAITING_MAX`] requests wait, at most [`WAITING_PER_PARTITION_MAX`] of one partition; a step is
//! of one request; among partitions the one that had fewest tokens goes first, and requests of one partition take
//! turns, so that a request of many texts holds up nobody for longer than a step; one that is cancelled ends before the
//! next step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use super::Encoder;
use crate::limits::{ENCODER_STEP_TOKENS_MAX, WAITING_MAX, WAITING_PER_PARTITION_MAX};
use crate::sequence::Partition;
use crate::shares::Shares;

/// One request, checked: each text fits the context.
#[derive(Debug)]
pub struct Job {
    /// Tokens of each text, those around it included.
    pub texts: Vec<Vec<u32>>,
    /// Whose request it is.
    pub partition: Partition,
    /// Where events go: one more than there are texts at most, so the channel needs no bound of its own.
    pub events: Sender<Event>,
    /// Set by whoever waits for the events, once it no longer does.
    pub cancelled: Arc<AtomicBool>,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It waits for its turn.
    Accepted,
    /// The next text's vector.
    Vector(Vec<f32>),
    /// The queue is full.
    Overloaded,
    /// The vectors are no numbers.
    Failed,
}

/// Requests that wait, in the order of their turns within a partition.
#[derive(Debug)]
pub struct Queue {
    encoder: Encoder,
    waiting: Vec<Request>,
    shares: Shares,
}

#[derive(Debug)]
struct Request {
    job: Job,
    /// Texts that are computed.
    done: usize,
}

impl Queue {
    /// A queue without requests.
    #[must_use]
    pub fn new(encoder: Encoder) -> Self {
        Self { encoder, waiting: Vec::new(), shares: Shares::default() }
    }

    /// Answers jobs until nobody can send any.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            if self.waiting.is_empty() {
                match jobs.recv() {
                    Ok(job) => self.start(job),
                    Err(_) => return,
                }
            }
            while let Ok(job) = jobs.try_recv() {
                self.start(job);
            }
            self.drop_cancelled();
            self.step();
        }
    }

    fn start(&mut self, job: Job) {
        let full = self.waiting.len() >= WAITING_MAX
            || self.shares.sequences(&job.partition) >= WAITING_PER_PARTITION_MAX;
        let event = if full { Event::Overloaded } else { Event::Accepted };
        // A receiver that is gone wants nothing.
        if job.events.send(event).is_ok() && !full {
            self.shares.arrive(&job.partition);
            self.waiting.push(Request { job, done: 0 });
        }
    }

    fn drop_cancelled(&mut self) {
        let (gone, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|request| request.job.cancelled.load(Ordering::Relaxed));
        gone.iter().for_each(|request| self.shares.leave(&request.job.partition));
        self.waiting = stay;
    }

    /// Computes as many texts of the next request as fit a step.
    fn step(&mut self) {
        let turn = |(_, request): &(usize, &Request)| self.shares.tokens(&request.job.partition);
        let Some((next, _)) = self.waiting.iter().enumerate().min_by_key(turn) else { return };
        let mut request = self.waiting.remove(next);
        let mut tokens = 0;
        let left = request.job.texts.iter().skip(request.done);
        let texts: Vec<&[u32]> = left
            .take_while(|text| {
                tokens += text.len();
                tokens <= ENCODER_STEP_TOKENS_MAX
            })
            .map(Vec::as_slice)
            .collect();
        self.shares.charge(&request.job.partition, texts.iter().map(|text| text.len()).sum());
        let vectors = self.encoder.encode(&texts);
        request.done += vectors.len();
        let more = request.tell(vectors) && request.done < request.job.texts.len();
        if more {
            self.waiting.push(request);
        } else {
            self.shares.leave(&request.job.partition);
        }
    }
}

impl Request {
    /// Whether it is wanted any more.
    fn tell(&self, vectors: Vec<Vec<f32>>) -> bool {
        vectors.into_iter().all(|vector| {
            let finite = vector.iter().all(|x| x.is_finite());
            let event = if finite { Event::Vector(vector) } else { Event::Failed };
            self.job.events.send(event).is_ok() && finite
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::tests::folder;
    use kernels::{Isa, Pool};
    use std::sync::mpsc::channel;

    fn queue() -> Queue {
        Queue::new(Encoder::new(&folder(), Isa::detect(), Pool::new(1).unwrap()).unwrap())
    }

    fn job(partition: &str, texts: usize, tokens: usize) -> (Job, Receiver<Event>) {
        let (events, receiver) = channel();
        let texts = (0..texts).map(|i| vec![u32::try_from(i % 100).unwrap(); tokens]).collect();
        let cancelled = Arc::new(AtomicBool::new(false));
        (Job { texts, partition: Partition::from(partition), events, cancelled }, receiver)
    }

    fn vectors(receiver: &Receiver<Event>) -> usize {
        receiver.try_iter().filter(|event| matches!(event, Event::Vector(_))).count()
    }

    #[test]
    fn a_step_is_of_one_request_and_partitions_take_turns() {
        let mut queue = queue();
        // 12 texts of 42 tokens are 504.
        let (many, of_many) = job("a", 40, 42);
        let (few, of_few) = job("b", 2, 42);
        let (others, of_others) = job("a", 2, 42);
        [many, few, others].into_iter().for_each(|job| queue.start(job));
        let mut steps = Vec::new();
        while !queue.waiting.is_empty() {
            queue.step();
            steps.push([&of_many, &of_few, &of_others].map(vectors));
        }
        let expected = [[12, 0, 0], [0, 2, 0], [0, 0, 2], [12, 0, 0], [12, 0, 0], [4, 0, 0]];
        assert_eq!(steps, expected);
    }

    #[test]
    fn nobody_fills_the_queue_for_all_and_none_is_longer_than_its_maximum() {
        let mut queue = queue();
        let answers: Vec<_> = (0..WAITING_MAX + 2)
            .map(|i| {
                let partition = if i <= WAITING_PER_PARTITION_MAX { "a" } else { "b" };
                let (job, events) = job(partition, 1, 3);
                queue.start(job);
                events.recv().unwrap()
            })
            .collect();
        let full: Vec<_> =
            (0..answers.len()).filter(|i| answers[*i] == Event::Overloaded).collect();
        assert_eq!(full, [WAITING_PER_PARTITION_MAX, WAITING_MAX + 1]);
        assert_eq!(queue.waiting.len(), WAITING_MAX);
    }

    #[test]
    fn who_leaves_is_computed_no_more() {
        let mut queue = queue();
        let (flagged, of_flagged) = job("a", 20, 42);
        let (dropped, of_dropped) = job("b", 20, 42);
        let cancelled = Arc::clone(&flagged.cancelled);
        queue.start(flagged);
        queue.start(dropped);
        cancelled.store(true, Ordering::Relaxed);
        drop(of_dropped);
        queue.drop_cancelled();
        queue.step();
        assert!(queue.waiting.is_empty());
        assert_eq!(of_flagged.iter().collect::<Vec<_>>(), [Event::Accepted]);
        assert_eq!(queue.shares.sequences(&Partition::from("b")), 0);
    }
}
