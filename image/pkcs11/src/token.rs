//! Modules, tokens and the keys in them.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};

use crate::objects::{always_authenticates, find_key, find_keys, find_public};
use crate::pin::{self, Pin};
use crate::public::{P256_PARAMS, PublicKey};
use crate::{Algorithm, Pkcs11Error, Uri};

/// Most tokens looked at.
const TOKENS_MAX: usize = 1024;
/// Bytes of a new key's `CKA_ID`.
const KEY_ID_BYTES: u32 = 8;
/// Exponent of new RSA keys, big-endian: 65537.
const RSA_EXPONENT: [u8; 3] = [1, 0, 1];

/// Longest wait for other processes that read or log in to tokens of the same module.
const ALONE_WAIT_MAX: Duration = Duration::from_secs(60);
const ALONE_POLL: Duration = Duration::from_millis(5);

/// A loaded and initialised module. It stays initialised until the process ends, since other parts of
/// the process may use it too.
#[derive(Clone, Debug)]
pub struct Module {
    path: PathBuf,
    context: Pkcs11,
}

impl Module {
    /// Loads the module at `path`, which runs code of its own in this process.
    ///
    /// # Errors
    /// [`Pkcs11Error::Module`].
    pub fn load(path: &Path) -> Result<Self, Pkcs11Error> {
        let failed = |cause| Pkcs11Error::Module { path: path.to_owned(), cause };
        let context = Pkcs11::new(path).map_err(failed)?;
        let module = Self { path: path.to_owned(), context };
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        let initialised = module.alone(|| module.context.initialize(arguments))?;
        match initialised {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(module),
            Err(source) => Err(failed(source)),
        }
    }

    /// Calls into the module while no other process of casemate reads or writes what it keeps about its tokens: SoftHSM
    /// rewrites a token's file in place at every login, and whoever reads it then gets `CKR_GENERAL_ERROR`.
    fn alone<T>(&self, calls: impl FnOnce() -> T) -> Result<T, Pkcs11Error> {
        let failed = |cause| Pkcs11Error::Alone { path: self.path.clone(), cause };
        let lock = File::open(&self.path).map_err(failed)?;
        let start = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(calls()),
                Err(TryLockError::WouldBlock) if start.elapsed() < ALONE_WAIT_MAX => {
                    std::thread::sleep(ALONE_POLL);
                }
                Err(error) => return Err(failed(error.into())),
            }
        }
    }

    /// Loads the module that `uri` names, or `module` if it names none.
    ///
    /// # Errors
    /// [`Pkcs11Error::NoModule`] or [`Pkcs11Error::Module`].
    pub fn of(uri: &Uri, module: Option<&Path>) -> Result<Self, Pkcs11Error> {
        Self::load(uri.module_path.as_deref().or(module).ok_or(Pkcs11Error::NoModule)?)
    }

    /// Initialises a free token under the label that `uri` names, with the PIN that it names for both
    /// roles.
    ///
    /// # Errors
    /// [`Pkcs11Error::Exists`] if there is such a token, [`Pkcs11Error::NoFreeToken`].
    pub fn initialise_token(&self, uri: &Uri) -> Result<(), Pkcs11Error> {
        let label = uri.token.as_deref().ok_or_else(|| incomplete(uri, "token"))?;
        let no_pin = || Pkcs11Error::NoPin { uri: uri.to_string() };
        let pin = pin::from_file(uri)?.ok_or_else(no_pin)?.value;
        let tokens = self.tokens()?;
        if tokens.iter().any(|(_, token)| token.token_initialized() && token.label() == label) {
            return Err(Pkcs11Error::Exists { what: "token", name: label.to_owned() });
        }
        let free = tokens.iter().find(|(_, token)| !token.token_initialized());
        let (slot, _) = free.ok_or(Pkcs11Error::NoFreeToken)?;
        let initialised = self.alone(|| self.context.init_token(*slot, &pin, label))?;
        initialised.map_err(call("initialise the token"))?;
        // Some modules give a token a new slot when it is initialised.
        let (slot, _) = self.find_token(uri)?;
        let session = self.context.open_rw_session(slot).map_err(call("open a session"))?;
        self.alone(|| {
            session.login(UserType::So, Some(&pin)).map_err(call("log in as security officer"))?;
            session.init_pin(&pin).map_err(call("set the user's PIN"))
        })?
    }

    /// Generates a key pair that signs in the token, under the label that `uri` names. The private key cannot leave the
    /// token. Returns the URI completed by the key's identifier.
    ///
    /// # Errors
    /// [`Pkcs11Error::Exists`] if there is such a key.
    pub fn generate(&self, uri: &Uri, algorithm: Algorithm) -> Result<Uri, Pkcs11Error> {
        self.generate_to(uri, algorithm, &[Attribute::Verify(true)], &[Attribute::Sign(true)])
    }

    /// The same for a key on P-256 that agrees on secrets, see [`crate::Agreement`].
    ///
    /// # Errors
    /// As [`Module::generate`].
    pub fn generate_agreement(&self, uri: &Uri) -> Result<Uri, Pkcs11Error> {
        // Said, since tokens have defaults of their own.
        let public = [Attribute::Derive(true), Attribute::Verify(false)];
        let private = [Attribute::Derive(true), Attribute::Sign(false)];
        self.generate_to(uri, Algorithm::P256, &public, &private)
    }

    fn generate_to(
        &self,
        uri: &Uri,
        algorithm: Algorithm,
        public_does: &[Attribute],
        private_does: &[Attribute],
    ) -> Result<Uri, Pkcs11Error> {
        let name = uri.object.as_deref().ok_or_else(|| incomplete(uri, "object"))?;
        let (slot, token) = self.find_token(uri)?;
        let session = self.context.open_rw_session(slot).map_err(call("open a session"))?;
        self.log_in(&session, &token, uri)?;
        let label = Attribute::Label(name.as_bytes().to_vec());
        let same =
            session.find_objects(std::slice::from_ref(&label)).map_err(call("look for keys"))?;
        if !same.is_empty() {
            return Err(Pkcs11Error::Exists { what: "key", name: name.to_owned() });
        }
        let id = session.generate_random_vec(KEY_ID_BYTES).map_err(call("make an identifier"))?;
        let (mechanism, kind) = generation(uri, algorithm)?;
        let mut public = vec![
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Id(id.clone()),
            label.clone(),
        ];
        public.extend(kind);
        public.extend_from_slice(public_does);
        let mut private = vec![
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Id(id.clone()),
            label,
        ];
        private.extend_from_slice(private_does);
        let generated = self.alone(|| session.generate_key_pair(&mechanism, &public, &private))?;
        generated.map_err(call("generate a key pair"))?;
        Ok(Uri { id: Some(id), ..uri.clone() })
    }

    /// Whether the token that `uri` names has a private key that `uri` matches.
    ///
    /// # Errors
    /// As [`Module::signer`], but for the key.
    pub fn has_key(&self, uri: &Uri) -> Result<bool, Pkcs11Error> {
        let session = self.session(uri)?;
        Ok(!find_keys(&session, uri, ObjectClass::PRIVATE_KEY)?.is_empty())
    }

    /// A session with the token that `uri` names, logged in.
    pub(crate) fn session(&self, uri: &Uri) -> Result<Session, Pkcs11Error> {
        let (slot, token) = self.find_token(uri)?;
        let session = self.context.open_ro_session(slot).map_err(call("open a session"))?;
        self.log_in(&session, &token, uri)?;
        Ok(session)
    }

    /// Opens the key that `uri` names.
    ///
    /// # Errors
    /// [`Pkcs11Error`] unless exactly one token and one key match and its public half is there.
    pub fn signer(&self, uri: &Uri) -> Result<Signer, Pkcs11Error> {
        let (slot, token) = self.find_token(uri)?;
        let session = self.context.open_ro_session(slot).map_err(call("open a session"))?;
        self.log_in(&session, &token, uri)?;
        let key = find_key(&session, uri, ObjectClass::PRIVATE_KEY, "private keys")?;
        if always_authenticates(&session, key)? {
            return Err(Pkcs11Error::AlwaysAuthenticate { uri: uri.to_string() });
        }
        let public = find_public(&session, uri, key)?;
        let pem = public.to_pem()?;
        Ok(Signer { uri: uri.clone(), token: token.label().to_owned(), session, key, public, pem })
    }

    /// Logs in if the token asks for it or the URI names a PIN: some tokens raise CKF_LOGIN_REQUIRED only
    /// once a PIN is set, and some never.
    fn log_in(&self, session: &Session, token: &TokenInfo, uri: &Uri) -> Result<(), Pkcs11Error> {
        // The login is the token's, not the session's: two keys in one token need one PIN.
        let state = session.get_session_info().map_err(call("read the session"))?.session_state();
        if matches!(state, SessionState::RoUser | SessionState::RwUser) {
            return Ok(());
        }
        let mut pin = pin::from_file(uri)?;
        if pin.is_none() && !token.login_required() {
            return Ok(());
        }
        // With a protected authentication path the PIN is typed at the token itself.
        if pin.is_none() && !token.protected_authentication_path() {
            let asked = pin::from_terminal(token.label())?;
            pin = Some(asked.ok_or_else(|| Pkcs11Error::NoPin { uri: uri.to_string() })?);
        }
        let value = pin.as_ref().map(|pin| &pin.value);
        match self.alone(|| session.login(UserType::User, value))? {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(Error::Pkcs11(refusal @ (RvError::PinIncorrect | RvError::PinLocked), _)) => {
                let locked = matches!(refusal, RvError::PinLocked) || token.user_pin_locked();
                Err(wrong_pin(token, pin.as_ref(), locked))
            }
            Err(cause) => Err(Pkcs11Error::Call { doing: "log in", cause }),
        }
    }

    fn tokens(&self) -> Result<Vec<(Slot, TokenInfo)>, Pkcs11Error> {
        self.alone(|| {
            let slots = self.context.get_slots_with_token().map_err(call("list the slots"))?;
            slots
                .into_iter()
                .take(TOKENS_MAX)
                .map(|slot| {
                    let token = self.context.get_token_info(slot).map_err(call("read a token"))?;
                    Ok((slot, token))
                })
                .collect()
        })?
    }

    fn find_token(&self, uri: &Uri) -> Result<(Slot, TokenInfo), Pkcs11Error> {
        let mut tokens = self.tokens()?;
        tokens.retain(|(_, token)| token.token_initialized());
        let present: Vec<_> = tokens.iter().map(|(_, t)| format!("{:?}", t.label())).collect();
        tokens.retain(|(_, token)| {
            uri.matches_token(
                token.label(),
                token.manufacturer_id(),
                token.model(),
                token.serial_number(),
            )
        });
        let count = tokens.len();
        match (tokens.pop(), count) {
            (Some(token), 1) => Ok(token),
            _ => Err(Pkcs11Error::Token {
                uri: uri.to_string(),
                count,
                present: if present.is_empty() { "none".to_owned() } else { present.join(", ") },
            }),
        }
    }
}

/// An open key in a token.
#[derive(Debug)]
pub struct Signer {
    uri: Uri,
    token: String,
    session: Session,
    key: ObjectHandle,
    public: PublicKey,
    pem: String,
}

impl Signer {
    /// Loads the module that `uri` names, or else `module`, and opens the key.
    ///
    /// # Errors
    /// As [`Module::of`] and [`Module::signer`].
    pub fn open(uri: &Uri, module: Option<&Path>) -> Result<Self, Pkcs11Error> {
        Module::of(uri, module)?.signer(uri)
    }

    /// The key's SubjectPublicKeyInfo in PEM.
    #[must_use]
    pub fn public_key_pem(&self) -> &str {
        &self.pem
    }

    /// The key's SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// [`Pkcs11Error::PublicKey`].
    pub fn public_key_der(&self) -> Result<Vec<u8>, Pkcs11Error> {
        self.public.to_spki().map(|document| document.as_bytes().to_vec())
    }

    /// The URI by which the key was opened.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Label of the token that holds the key.
    #[must_use]
    pub fn token_label(&self) -> &str {
        &self.token
    }

    /// What the key is.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.public.algorithm()
    }

    /// This signer if its key is one of those that `expected` describes and `accept` takes.
    ///
    /// # Errors
    /// [`Pkcs11Error::Algorithm`].
    pub fn expect(
        self,
        expected: &'static str,
        accept: impl FnOnce(Algorithm) -> bool,
    ) -> Result<Self, Pkcs11Error> {
        let found = self.algorithm();
        if accept(found) {
            return Ok(self);
        }
        Err(Pkcs11Error::Algorithm { uri: self.uri.to_string(), found, expected })
    }

    /// Signs as the key's [`Algorithm`] says, ECDSA in DER. The message is hashed here and the token signs the digest.
    ///
    /// # Errors
    /// [`Pkcs11Error::Call`], or [`Pkcs11Error::Signature`] if what came back does not verify.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Pkcs11Error> {
        let mechanism = match self.algorithm() {
            Algorithm::P256 | Algorithm::P384 => Mechanism::Ecdsa,
            Algorithm::Rsa { .. } => Mechanism::RsaPkcs,
        };
        let digest = self.public.digest(message);
        let raw = self
            .session
            .sign(&mechanism, self.key, &self.public.to_sign(&digest))
            .map_err(call("sign"))?;
        self.public.check_signature(&digest, &raw)
    }
}

/// How keys of a kind are generated, and the attributes that say so.
fn generation(
    uri: &Uri,
    algorithm: Algorithm,
) -> Result<(Mechanism<'static>, Vec<Attribute>), Pkcs11Error> {
    match algorithm {
        Algorithm::P256 => {
            Ok((Mechanism::EccKeyPairGen, vec![Attribute::EcParams(P256_PARAMS.to_vec())]))
        }
        Algorithm::Rsa { bits } if (2048..=4096).contains(&bits) => {
            let bits = cryptoki::types::Ulong::from(u64::try_from(bits).unwrap_or(u64::MAX));
            let exponent = Attribute::PublicExponent(RSA_EXPONENT.to_vec());
            Ok((Mechanism::RsaPkcsKeyPairGen, vec![Attribute::ModulusBits(bits), exponent]))
        }
        found => Err(Pkcs11Error::Algorithm {
            uri: uri.to_string(),
            found,
            expected: "EC on P-256, or RSA of 2048 to 4096 bits",
        }),
    }
}

fn wrong_pin(token: &TokenInfo, pin: Option<&Pin>, locked: bool) -> Pkcs11Error {
    let left = if locked {
        "it is locked; its security officer must set a new PIN"
    } else if token.user_pin_final_try() || token.user_pin_count_low() {
        "correct it; the token locks after few more wrong ones"
    } else {
        "correct it; tokens lock after some wrong ones"
    };
    let from = pin.map_or_else(|| "the token's own keypad".to_owned(), |pin| pin.from.clone());
    Pkcs11Error::WrongPin { token: token.label().to_owned(), from, left }
}

fn incomplete(uri: &Uri, missing: &'static str) -> Pkcs11Error {
    Pkcs11Error::Incomplete { uri: uri.to_string(), missing }
}

pub(crate) fn call(doing: &'static str) -> impl Fn(Error) -> Pkcs11Error {
    move |cause| Pkcs11Error::Call { doing, cause }
}
