//! Error answers.

use super::*;

#[test]
fn every_failure_of_the_server_has_a_sentence_for_everyone() {
    let general = Code::InvalidInput.sentence();
    for code in Code::ALL {
        if code.status().is_server_error() {
            assert_ne!(code.sentence(), general, "{code:?}");
        }
    }
}

#[test]
fn only_made_text_about_a_failure_of_the_server_is_for_the_operator_alone() {
    let shown = |error: ApiError| !error.inside;
    assert!(shown(ApiError::new(Code::Unavailable, "fixed")));
    assert!(!shown(ApiError::new(Code::Unavailable, format!("{}", 1))));
    assert!(shown(
        ApiError::new(Code::Unavailable, format!("{}", 1)).for_everyone()
    ));
    assert!(shown(ApiError::new(Code::InvalidInput, format!("{}", 1))));
}

#[test]
fn a_memory_of_keys_that_is_full_is_no_conflict_of_the_request() {
    let full = ApiError::from(StoreError::TooManyRemembered { own: true }).code;
    assert_eq!(full.status(), StatusCode::INSUFFICIENT_STORAGE);
    assert!(!full.retryable());
    let reused = ApiError::from(StoreError::KeyReused).code;
    assert_eq!(reused.status(), StatusCode::CONFLICT);
}
