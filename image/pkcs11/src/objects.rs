//! The objects of a token: which key a URI names, and its public half.

use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use crate::public::PublicKey;
use crate::token::call;
use crate::{Pkcs11Error, Uri};

/// Most keys whose labels an error lists.
const LISTED_MAX: usize = 32;

pub(crate) fn find_key(
    session: &Session,
    uri: &Uri,
    class: ObjectClass,
    kind: &'static str,
) -> Result<ObjectHandle, Pkcs11Error> {
    let mut found = find_keys(session, uri, class)?;
    let count = found.len();
    match (found.pop(), count) {
        (Some(key), 1) => Ok(key),
        _ => {
            let present = labels(session, class)?;
            Err(Pkcs11Error::Key { uri: uri.to_string(), kind, count, present })
        }
    }
}

pub(crate) fn find_keys(
    session: &Session,
    uri: &Uri,
    class: ObjectClass,
) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    let mut template = vec![Attribute::Class(class)];
    template.extend(uri.object.as_ref().map(|label| Attribute::Label(label.as_bytes().to_vec())));
    template.extend(uri.id.as_ref().map(|id| Attribute::Id(id.clone())));
    session.find_objects(&template).map_err(call("look for the key"))
}

/// Labels of the objects of a class, for an error.
fn labels(session: &Session, class: ObjectClass) -> Result<String, Pkcs11Error> {
    let found = session.find_objects(&[Attribute::Class(class)]).map_err(call("look for keys"))?;
    let mut labels = Vec::new();
    for key in found.into_iter().take(LISTED_MAX) {
        let attributes =
            session.get_attributes(key, &[AttributeType::Label]).map_err(call("read a key"))?;
        labels.extend(attributes.iter().filter_map(|attribute| match attribute {
            Attribute::Label(label) => Some(format!("{:?}", String::from_utf8_lossy(label))),
            _ => None,
        }));
    }
    Ok(if labels.is_empty() { "none".to_owned() } else { labels.join(", ") })
}

pub(crate) fn always_authenticates(
    session: &Session,
    key: ObjectHandle,
) -> Result<bool, Pkcs11Error> {
    let asked = [AttributeType::AlwaysAuthenticate];
    // A module that does not know the attribute leaves it out.
    let attributes = session.get_attributes(key, &asked).map_err(call("read the private key"))?;
    Ok(attributes.contains(&Attribute::AlwaysAuthenticate(true)))
}

/// The public half: the public key object with the private key's identifier, or by the URI if the
/// private key has none. Without such an object an RSA key's is in the private one.
pub(crate) fn find_public(
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
    if find_keys(session, &wanted, ObjectClass::PUBLIC_KEY)?.is_empty()
        && key_type(session, private)? == Some(KeyType::RSA)
    {
        return read_public(session, private);
    }
    let key = find_key(session, &wanted, ObjectClass::PUBLIC_KEY, "public keys")?;
    read_public(session, key)
}

fn key_type(session: &Session, key: ObjectHandle) -> Result<Option<KeyType>, Pkcs11Error> {
    let attributes =
        session.get_attributes(key, &[AttributeType::KeyType]).map_err(call("read a key"))?;
    Ok(attributes.into_iter().find_map(|attribute| match attribute {
        Attribute::KeyType(kind) => Some(kind),
        _ => None,
    }))
}

fn read_public(session: &Session, key: ObjectHandle) -> Result<PublicKey, Pkcs11Error> {
    let read = |asked: &[AttributeType]| {
        session.get_attributes(key, asked).map_err(call("read the public key"))
    };
    let refuse = |reason: &str| Pkcs11Error::PublicKey { reason: reason.to_owned() };
    match key_type(session, key)? {
        Some(KeyType::EC) => {
            match read(&[AttributeType::EcParams, AttributeType::EcPoint])?.as_slice() {
                [Attribute::EcParams(params), Attribute::EcPoint(point)]
                | [Attribute::EcPoint(point), Attribute::EcParams(params)] => {
                    PublicKey::from_attributes(params, point)
                }
                _ => Err(refuse("the token gives no CKA_EC_PARAMS and CKA_EC_POINT")),
            }
        }
        Some(KeyType::RSA) => {
            match read(&[AttributeType::Modulus, AttributeType::PublicExponent])?.as_slice() {
                [Attribute::Modulus(modulus), Attribute::PublicExponent(exponent)]
                | [Attribute::PublicExponent(exponent), Attribute::Modulus(modulus)] => {
                    PublicKey::from_rsa(modulus, exponent)
                }
                _ => Err(refuse("the token gives no CKA_MODULUS and CKA_PUBLIC_EXPONENT")),
            }
        }
        found => Err(Pkcs11Error::PublicKey {
            reason: format!("CKA_KEY_TYPE is {found:?}; expected RSA, or EC on P-256 or P-384"),
        }),
    }
}
