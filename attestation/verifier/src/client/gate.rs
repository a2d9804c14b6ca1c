//! Which connections may carry a client's request.
//!
//! Invariant: [`Gate::open`] hands out a connection only if evidence that was established less than `renew` ago
//! measures the very key that this connection's peer has just proven to hold.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::attest::attest;
use super::limits::{IDLE_MAX, IDLE_TIME, REFUSAL_TIME};
use super::link::{Link, Peer};
use super::refusal::Refusal;
use super::trust::Trust;
use crate::words::Language;

/// The appliance as one proxy sees it.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(super) peer: Peer,
    trust: Trust,
    lang: Language,
    renew: Duration,
    /// Locked while evidence is fetched, so that it is fetched once for all who wait.
    known: tokio::sync::Mutex<Known>,
    idle: Mutex<Vec<(Instant, Link)>>,
}

/// The last judgement.
#[derive(Clone, Debug)]
enum Known {
    Nothing,
    Established { spki_sha256: [u8; 32], until: Instant },
    Refused { spki_sha256: [u8; 32], until: Instant, refusal: Refusal },
}

impl Gate {
    pub(crate) fn new(peer: Peer, trust: Trust, lang: Language, renew: Duration) -> Self {
        let known = tokio::sync::Mutex::new(Known::Nothing);
        Self { peer, trust, lang, renew, known, idle: Mutex::default() }
    }

    /// A connection whose peer is attested now.
    pub(super) async fn open(&self) -> Result<Link, Refusal> {
        if let Some(link) = self.take_idle() {
            // Not attested anew for its own sake: if its time is over, it is closed here.
            if self.is_established(link.spki_sha256()).await {
                return Ok(link);
            }
        }
        let mut link = self.peer.connect().await?;
        let mut known = self.known.lock().await;
        let spki_sha256 = link.spki_sha256();
        match &*known {
            Known::Established { spki_sha256: key, until }
                if *key == spki_sha256 && Instant::now() < *until =>
            {
                return Ok(link);
            }
            Known::Refused { spki_sha256: key, until, refusal }
                if *key == spki_sha256 && Instant::now() < *until =>
            {
                return Err(refusal.clone());
            }
            _ => {}
        }
        self.judge(&mut link, &mut known).await?;
        Ok(link)
    }

    /// Attests again, whatever is known.
    pub(super) async fn renew(&self) -> Result<(), Refusal> {
        let connected = self.peer.connect().await;
        let mut known = self.known.lock().await;
        match connected {
            Ok(mut link) => self.judge(&mut link, &mut known).await,
            Err(refusal) => {
                self.forget(&mut known);
                Err(refusal)
            }
        }
    }

    /// Takes a connection back whose answer is complete.
    pub(super) async fn give_back(&self, mut link: Link) {
        let reusable = tokio::time::timeout(IDLE_TIME, link.is_reusable()).await;
        if reusable == Ok(true) && self.is_established(link.spki_sha256()).await {
            let mut idle = self.idle();
            if idle.len() < IDLE_MAX {
                idle.push((Instant::now() + IDLE_TIME, link));
            }
        }
    }

    async fn judge(&self, link: &mut Link, known: &mut Known) -> Result<(), Refusal> {
        let spki_sha256 = link.spki_sha256();
        let asked = Instant::now();
        let attested = attest(&self.peer, link, &self.trust, self.lang).await;
        match attested.and_then(|attestation| attestation.outcome) {
            Ok(()) => {
                if !matches!(known, Known::Established { spki_sha256: key, .. } if *key == spki_sha256)
                {
                    self.idle().clear();
                    eprintln!("casemate-verify: established: key {}", hex::encode(spki_sha256));
                }
                // From the question on: the quote was made after it.
                *known = Known::Established { spki_sha256, until: asked + self.renew };
                Ok(())
            }
            Err(refusal) => {
                eprintln!("casemate-verify: refused: {refusal}");
                self.forget(known);
                let until = Instant::now() + REFUSAL_TIME;
                *known = Known::Refused { spki_sha256, until, refusal: refusal.clone() };
                Err(refusal)
            }
        }
    }

    fn forget(&self, known: &mut Known) {
        *known = Known::Nothing;
        self.idle().clear();
    }

    async fn is_established(&self, key: [u8; 32]) -> bool {
        let known = self.known.lock().await;
        matches!(&*known, Known::Established { spki_sha256, until }
            if *spki_sha256 == key && Instant::now() < *until)
    }

    fn take_idle(&self) -> Option<Link> {
        let mut idle = self.idle();
        let now = Instant::now();
        idle.retain(|(until, link)| now < *until && !link.is_closed());
        idle.pop().map(|(_, link)| link)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Instant, Link)>> {
        // Nothing that may panic runs under this lock.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
