//! Why an identity, a token, a join or an init was refused, each with the way out.
use weft_client::ClientError;
use weft_model::{ApiError, ErrorCode};

use crate::StoreError;

/// A refusal or a failure of membership.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// A file of the state directory cannot be used.
    #[error("{path} {reason}; {hint}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// A key or certificate cannot be made or read.
    #[error("{what} is not usable: {reason}; {hint}")]
    Crypto {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The text is not a join token.
    #[error(
        "this is not a join token: {reason}; copy it whole, as `netctl token create` printed it (it begins with weft1.)"
    )]
    Token {
        /// What is wrong; never part of the token.
        reason: String,
    },
    /// A refusal that the API speaks as it is: of the seed, or of a request's field.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The seed cannot be asked.
    #[error(transparent)]
    Client(ClientError),
}

impl From<ClientError> for MembershipError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Api(error) => Self::Refused(error),
            other => Self::Client(other),
        }
    }
}

impl From<MembershipError> for ApiError {
    fn from(error: MembershipError) -> Self {
        let code = match error {
            MembershipError::Refused(error) => return error,
            MembershipError::Store(error) => return error.into(),
            MembershipError::Client(error) => return error.into(),
            MembershipError::Token { .. } => ErrorCode::Invalid,
            MembershipError::File { .. } | MembershipError::Crypto { .. } => ErrorCode::Internal,
        };
        let text = error.to_string();
        let (message, hint) = text.rsplit_once("; ").unwrap_or((text.as_str(), "see the log"));
        let answer = Self::new(code, message, hint);
        // The token itself is a secret: the field is named, its value is not.
        if code == ErrorCode::Invalid { Self { field: Some("token".into()), ..answer } } else { answer }
    }
}
