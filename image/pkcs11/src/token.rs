//! Modules, tokens and the keys in them.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;

use crate::public::{P256_PARAMS, PublicKey};
use crate::{PIN_BYTES_MAX, Pkcs11Error, Uri};

/// Most tokens looked at.
const TOKENS_MAX: usize = 1024;
/// Bytes of a new key's `CKA_ID`.
const KEY_ID_BYTES: u32 = 8;
/// "Other" may neither read nor write a PIN file.
const MODE_OTHER: u32 = 0o007;

/// A loaded and initialised module. It stays initialised until the process ends, since other parts of
/// the process may use it too.
#[derive(Clone, Debug)]
pub struct Module {
    context: Pkcs11,
}

impl Module {
    /// Loads the module at `path`, which runs code of its own in this process.
    ///
    /// # Errors
    /// [`Pkcs11Error::Module`].
    pub fn load(path: &Path) -> Result<Self, Pkcs11Error> {
        let failed = |source| Pkcs11Error::Module { path: path.to_owned(), source };
        let context = Pkcs11::new(path).map_err(failed)?;
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        match context.initialize(arguments) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {
                Ok(Self { context })
            }
            Err(source) => Err(failed(source)),
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
        let pin = read_pin(uri)?.ok_or_else(|| Pkcs11Error::NoPin { uri: uri.to_string() })?;
        let tokens = self.tokens()?;
        if tokens.iter().any(|(_, token)| token.token_initialized() && token.label() == label) {
            return Err(Pkcs11Error::Exists { what: "token", name: label.to_owned() });
        }
        let free = tokens.iter().find(|(_, token)| !token.token_initialized());
        let (slot, _) = free.ok_or(Pkcs11Error::NoFreeToken)?;
        self.context.init_token(*slot, &pin, label).map_err(call("initialise the token"))?;
        // Some modules give a token a new slot when it is initialised.
        let (slot, _) = self.find_token(uri)?;
        let session = self.context.open_rw_session(slot).map_err(call("open a session"))?;
        session.login(UserType::So, Some(&pin)).map_err(call("log in as security officer"))?;
        session.init_pin(&pin).map_err(call("set the user's PIN"))
    }

    /// Generates a P-256 key pair in the token, under the label that `uri` names. The private key
    /// cannot leave the token. Returns the URI completed by the key's identifier.
    ///
    /// # Errors
    /// [`Pkcs11Error::Exists`] if there is such a key.
    pub fn generate_p256(&self, uri: &Uri) -> Result<Uri, Pkcs11Error> {
        let name = uri.object.as_deref().ok_or_else(|| incomplete(uri, "object"))?;
        let (slot, token) = self.find_token(uri)?;
        let session = self.context.open_rw_session(slot).map_err(call("open a session"))?;
        log_in(&session, &token, uri)?;
        let label = Attribute::Label(name.as_bytes().to_vec());
        let same =
            session.find_objects(std::slice::from_ref(&label)).map_err(call("look for keys"))?;
        if !same.is_empty() {
            return Err(Pkcs11Error::Exists { what: "key", name: name.to_owned() });
        }
        let id = session.generate_random_vec(KEY_ID_BYTES).map_err(call("make an identifier"))?;
        let public = [
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Verify(true),
            Attribute::EcParams(P256_PARAMS.to_vec()),
            Attribute::Id(id.clone()),
            label.clone(),
        ];
        let private = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            Attribute::Id(id.clone()),
            label,
        ];
        session
            .generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)
            .map_err(call("generate a key pair"))?;
        Ok(Uri { id: Some(id), ..uri.clone() })
    }

    /// Opens the key that `uri` names.
    ///
    /// # Errors
    /// [`Pkcs11Error`] unless exactly one token and one key match and its public half is there.
    pub fn signer(&self, uri: &Uri) -> Result<Signer, Pkcs11Error> {
        let (slot, token) = self.find_token(uri)?;
        let session = self.context.open_ro_session(slot).map_err(call("open a session"))?;
        log_in(&session, &token, uri)?;
        let key = find_key(&session, uri, ObjectClass::PRIVATE_KEY, "private EC keys")?;
        if always_authenticates(&session, key)? {
            return Err(Pkcs11Error::AlwaysAuthenticate { uri: uri.to_string() });
        }
        let public = find_public(&session, uri, key)?;
        let pem = public.to_pem()?;
        Ok(Signer { session, key, public, pem })
    }

    fn tokens(&self) -> Result<Vec<(Slot, TokenInfo)>, Pkcs11Error> {
        let slots = self.context.get_slots_with_token().map_err(call("list the slots"))?;
        slots
            .into_iter()
            .take(TOKENS_MAX)
            .map(|slot| {
                let token = self.context.get_token_info(slot).map_err(call("read a token"))?;
                Ok((slot, token))
            })
            .collect()
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

    /// ECDSA over `message`, in DER: with SHA-256 by a P-256 key, with SHA-384 by a P-384 key. The
    /// message is hashed here and the token signs the digest.
    ///
    /// # Errors
    /// [`Pkcs11Error::Call`], or [`Pkcs11Error::Signature`] if what came back does not verify.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Pkcs11Error> {
        let digest = self.public.digest(message);
        let raw = self.session.sign(&Mechanism::Ecdsa, self.key, &digest).map_err(call("sign"))?;
        self.public.check_signature(&digest, &raw)
    }
}

/// Logs in if the token asks for it or the URI names a PIN: some tokens raise CKF_LOGIN_REQUIRED only
/// once a PIN is set, and some never.
fn log_in(session: &Session, token: &TokenInfo, uri: &Uri) -> Result<(), Pkcs11Error> {
    let pin = read_pin(uri)?;
    if pin.is_none() && !token.login_required() {
        return Ok(());
    }
    // With a protected authentication path the PIN is typed at the token itself.
    if pin.is_none() && !token.protected_authentication_path() {
        return Err(Pkcs11Error::NoPin { uri: uri.to_string() });
    }
    match session.login(UserType::User, pin.as_ref()) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(source) => Err(Pkcs11Error::Call { doing: "log in", source }),
    }
}

fn read_pin(uri: &Uri) -> Result<Option<AuthPin>, Pkcs11Error> {
    let Some(path) = &uri.pin_source else { return Ok(None) };
    let failed = |reason: String| Pkcs11Error::PinFile { path: PathBuf::from(path), reason };
    let file = fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let metadata = file.metadata().map_err(|error| failed(error.to_string()))?;
    if !metadata.is_file() || metadata.mode() & MODE_OTHER != 0 {
        let mode = metadata.mode() & 0o7777;
        return Err(failed(format!(
            "mode {mode:o}; expected a file that others cannot read (600)"
        )));
    }
    let mut text = String::new();
    file.take(PIN_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| failed(error.to_string()))?;
    let pin = text.trim_end_matches(['\r', '\n']);
    if pin.is_empty() || text.len() as u64 > PIN_BYTES_MAX {
        return Err(failed(format!("expected a PIN of 1 to {PIN_BYTES_MAX} bytes")));
    }
    Ok(Some(AuthPin::new(pin.into())))
}

fn find_key(
    session: &Session,
    uri: &Uri,
    class: ObjectClass,
    kind: &'static str,
) -> Result<ObjectHandle, Pkcs11Error> {
    let mut template = vec![Attribute::Class(class), Attribute::KeyType(KeyType::EC)];
    template.extend(uri.object.as_ref().map(|label| Attribute::Label(label.as_bytes().to_vec())));
    template.extend(uri.id.as_ref().map(|id| Attribute::Id(id.clone())));
    let mut found = session.find_objects(&template).map_err(call("look for the key"))?;
    let count = found.len();
    match (found.pop(), count) {
        (Some(key), 1) => Ok(key),
        _ => Err(Pkcs11Error::Key { uri: uri.to_string(), kind, count }),
    }
}

fn always_authenticates(session: &Session, key: ObjectHandle) -> Result<bool, Pkcs11Error> {
    let asked = [AttributeType::AlwaysAuthenticate];
    // A module that does not know the attribute leaves it out.
    let attributes = session.get_attributes(key, &asked).map_err(call("read the private key"))?;
    Ok(attributes.contains(&Attribute::AlwaysAuthenticate(true)))
}

/// The public half: the public key object with the private key's identifier, or by the URI if the
/// private key has none.
fn find_public(
    session: &Session,
    uri: &Uri,
    private: ObjectHandle,
) -> Result<PublicKey, Pkcs11Error> {
    let attributes = session
        .get_attributes(private, &[AttributeType::Id])
        .map_err(call("read the private key"))?;
    let id = attributes.into_iter().find_map(|attribute| match attribute {
        Attribute::Id(id) if !id.is_empty() => Some(id),
        _ => None,
    });
    let wanted = match id {
        Some(id) => Uri { id: Some(id), object: None, ..uri.clone() },
        None => uri.clone(),
    };
    let key = find_key(session, &wanted, ObjectClass::PUBLIC_KEY, "public EC keys")?;
    let asked = [AttributeType::EcParams, AttributeType::EcPoint];
    let attributes = session.get_attributes(key, &asked).map_err(call("read the public key"))?;
    match attributes.as_slice() {
        [Attribute::EcParams(params), Attribute::EcPoint(point)]
        | [Attribute::EcPoint(point), Attribute::EcParams(params)] => {
            PublicKey::from_attributes(params, point)
        }
        _ => Err(Pkcs11Error::PublicKey {
            reason: "the token gives no CKA_EC_PARAMS and CKA_EC_POINT".to_owned(),
        }),
    }
}

fn incomplete(uri: &Uri, missing: &'static str) -> Pkcs11Error {
    Pkcs11Error::Incomplete { uri: uri.to_string(), missing }
}

fn call(doing: &'static str) -> impl Fn(Error) -> Pkcs11Error {
    move |source| Pkcs11Error::Call { doing, source }
}
