//! Query parameters: what a route does not know is refused and never ignored.
//!
//! No route can forget to: [`Group`](super::access::Group) registers a handler only if
//! [`Extractor`] is implemented for everything that it takes from the request, and puts [`Strict`]
//! in front of it. A handler that reads no parameters then takes none.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::str::FromStr;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse as _, Response};
use futures_util::future::Either;
use nimbus_manifests::TenantId;

use super::App;
use super::body::Body;
use super::caller::Caller;
use super::error::{ApiError, Code};
use super::once::Keyed;
use super::tenant_path::Tenant;
use crate::documents::TableName;
use crate::documents::schedule::CronName;

/// The parameters of a route, whose reading names them.
pub(super) trait FromQuery: Sized {
    /// Takes every parameter that the route has.
    fn from_query(given: &mut Given) -> Result<Self, ParameterError>;
}

/// Why a query is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ParameterError {
    /// It is no list of names and values.
    #[error("the query of the request cannot be read")]
    Unreadable,
    /// A value is not what it must be.
    #[error("the query parameter {name:?} must be {rule}")]
    Wrong { name: &'static str, rule: String },
    /// A name stands there more than once.
    #[error("the query parameter {name:?} is given more than once")]
    Repeated { name: String },
    /// A name is none that the route takes.
    #[error(
        "{name:?} is no query parameter of this route, which takes {}",
        listed(known)
    )]
    Unknown {
        name: String,
        known: Vec<&'static str>,
    },
}

fn listed(known: &[&str]) -> String {
    let quoted: Vec<String> = known.iter().map(|name| format!("{name:?}")).collect();
    match &quoted[..] {
        [] => "none".to_owned(),
        quoted => quoted.join(" and "),
    }
}

impl From<ParameterError> for ApiError {
    fn from(error: ParameterError) -> Self {
        Self::new(Code::InvalidInput, error.to_string())
    }
}

/// The parameters of a request. Those that [`FromQuery`] does not take are refused, and so are
/// repeated ones.
pub(super) struct Query<T>(pub(super) T);

impl<T: FromQuery, S: Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let mut given = Given::of(&parts.uri)?;
        let read = T::from_query(&mut given)?;
        given.finish()?;
        Ok(Self(read))
    }
}

/// The query of a request whose meaning is not the server's: a deployed page reads its own.
pub(super) struct PageQuery(pub(super) Option<String>);

impl<S: Sync> FromRequestParts<S> for PageQuery {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.uri.query().map(str::to_owned)))
    }
}

/// Parameters as a request gives them, and those that were asked for.
pub(super) struct Given {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Given {
    fn of(uri: &Uri) -> Result<Self, ParameterError> {
        let read = axum::extract::Query::try_from_uri(uri);
        let axum::extract::Query(left) =
            read.map_err(|_in_its_words| ParameterError::Unreadable)?;
        Ok(Self {
            left,
            known: Vec::new(),
        })
    }

    /// Takes a parameter, which must be `rule`.
    pub(super) fn take<T>(
        &mut self,
        name: &'static str,
        rule: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ParameterError> {
        self.known.push(name);
        let Some(place) = self.left.iter().position(|(given, _)| given == name) else {
            return Ok(None);
        };
        let (_name, value) = self.left.remove(place);
        match read(&value) {
            Some(value) => Ok(Some(value)),
            None => Err(ParameterError::Wrong {
                name,
                rule: rule.to_owned(),
            }),
        }
    }

    /// Refuses what nobody asked for.
    fn finish(self) -> Result<(), ParameterError> {
        let Self { left, known } = self;
        let Some((name, _value)) = left.into_iter().next() else {
            return Ok(());
        };
        let repeated = known.contains(&name.as_str());
        let name = name.chars().take(SHOWN_CHARS).collect();
        Err(match repeated {
            true => ParameterError::Repeated { name },
            false => ParameterError::Unknown { name, known },
        })
    }
}

/// Which part of a list is asked for.
pub(super) struct ListPart<A> {
    /// What the part begins after.
    pub(super) after: Option<A>,
    /// The most items.
    pub(super) limit: Option<usize>,
}

/// What a part of a list may begin after.
pub(super) trait After: FromStr {
    /// What it is, for who wrote another thing.
    const RULE: &'static str;
}

impl After for TenantId {
    const RULE: &'static str = "the id of a tenant";
}

impl After for TableName {
    const RULE: &'static str = "the name of a table";
}

impl After for CronName {
    const RULE: &'static str = "the name of a cron";
}

impl After for u64 {
    const RULE: &'static str = "the number of a write";
}

/// A cursor, which its list reads.
impl After for String {
    const RULE: &'static str = "the \"next_cursor\" of a page";
}

impl<A> ListPart<A> {
    /// How many items at most.
    pub(super) fn size(&self) -> usize {
        self.limit.unwrap_or(MAX_LIMIT)
    }
}

impl<A: After> FromQuery for ListPart<A> {
    fn from_query(given: &mut Given) -> Result<Self, ParameterError> {
        let after = given.take("after", A::RULE, |text| text.parse().ok())?;
        let limit = given.take("limit", &format!("1 to {MAX_LIMIT}"), |text| {
            let limit = text.parse().ok()?;
            (1..=MAX_LIMIT).contains(&limit).then_some(limit)
        })?;
        Ok(Self { after, limit })
    }
}

/// The most items of one part of any list.
pub(super) const MAX_LIMIT: usize = 1000;

/// What a handler may take from a request.
#[diagnostic::on_unimplemented(
    message = "handlers may not take `{Self}` from a request",
    note = "query parameters are read by `Query` alone; list other extractors in src/server/parameters.rs"
)]
pub(super) trait Extractor {
    /// Whether it sees to the query, all of it.
    const READS_QUERY: bool = false;
}

impl Extractor for State<Arc<App>> {}
impl Extractor for Tenant {}
impl<T> Extractor for Path<T> {}
impl<T> Extractor for Body<T> {}
impl<T> Extractor for Keyed<T> {}
impl Extractor for Extension<Caller> {}
impl Extractor for Method {}
impl Extractor for HeaderMap {}
impl<T> Extractor for Query<T> {
    const READS_QUERY: bool = true;
}
impl Extractor for PageQuery {
    const READS_QUERY: bool = true;
}

/// All that a handler takes, as axum writes it: a marker of its own first.
pub(super) trait Extractors {
    /// Whether one of them sees to the query.
    const READS_QUERY: bool;
}

macro_rules! extractors {
    ($($name:ident)*) => {
        impl<Marker, $($name: Extractor),*> Extractors for (Marker, $($name,)*) {
            const READS_QUERY: bool = false $(|| $name::READS_QUERY)*;
        }
    };
}

extractors! {}
extractors! { A }
extractors! { A B }
extractors! { A B C }
extractors! { A B C D }
extractors! { A B C D E }
extractors! { A B C D E F }
extractors! { A B C D E F G }

/// A handler that is not called with parameters that nobody reads.
#[derive(Debug, Clone)]
pub(super) struct Strict<H>(pub(super) H);

impl<H, T, S> Handler<T, S> for Strict<H>
where
    H: Handler<T, S>,
    T: Extractors,
{
    type Future = Either<Ready<Response>, H::Future>;

    fn call(self, request: Request, state: S) -> Self::Future {
        if !T::READS_QUERY
            && let Err(error) = Given::of(request.uri()).and_then(Given::finish)
        {
            return Either::Left(ready(ApiError::from(error).into_response()));
        }
        Either::Right(self.0.call(request, state))
    }
}

/// How much of a name is said back.
const SHOWN_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<(Option<u64>, Option<usize>), ParameterError> {
        let mut given = Given::of(&format!("/list?{query}").parse().unwrap())?;
        let ListPart { after, limit } = ListPart::from_query(&mut given)?;
        given.finish()?;
        Ok((after, limit))
    }

    #[test]
    fn takes_what_it_knows_once_and_nothing_else() {
        assert_eq!(read(""), Ok((None, None)));
        assert_eq!(read("&"), Ok((None, None)));
        assert_eq!(read("limit=1000&after=0"), Ok((Some(0), Some(1000))));
        for query in [
            "limit=0",
            "limit=1001",
            "limit=",
            "limit=1.0",
            "limit=1%20",
            "limit",
        ] {
            let wrong = ParameterError::Wrong {
                name: "limit",
                rule: "1 to 1000".to_owned(),
            };
            assert_eq!(read(query), Err(wrong), "{query}");
        }
        for query in ["after=x", "after=-1", "after="] {
            let wrong = ParameterError::Wrong {
                name: "after",
                rule: "the number of a write".to_owned(),
            };
            assert_eq!(read(query), Err(wrong), "{query}");
        }
        let name = "limit".to_owned();
        let repeated = ParameterError::Repeated { name };
        assert_eq!(read("limit=1&limit=1"), Err(repeated));
        let long = "x".repeat(SHOWN_CHARS);
        for (query, name) in [
            ("Limit=1", "Limit"),
            ("=1", ""),
            ("limit=1&page=2", "page"),
            (&format!("{long}y"), &long),
        ] {
            let unknown = ParameterError::Unknown {
                name: name.to_owned(),
                known: vec!["after", "limit"],
            };
            assert_eq!(read(query), Err(unknown), "{query}");
        }
    }

    #[test]
    fn says_what_the_route_takes() {
        let unknown = |known: &[&'static str]| {
            let known = known.to_vec();
            let name = "surprise".to_owned();
            ParameterError::Unknown { name, known }.to_string()
        };
        let beginning = "\"surprise\" is no query parameter of this route, which takes ";
        assert_eq!(unknown(&[]), format!("{beginning}none"));
        assert_eq!(
            unknown(&["after", "limit"]),
            format!("{beginning}\"after\" and \"limit\"")
        );
    }
}
