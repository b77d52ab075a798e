//! The page for people: one file, with nothing from elsewhere in it. It asks the daemon what anybody may ask, and shows what
//! is answered.
//!
//! Its parts lie beside this file and are joined by the compiler. A browser runs nothing but this one script and asks nobody
//! but this daemon: the policy that is sent along names both by their hashes.

use std::sync::LazyLock;

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use axum::routing::get;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use sha2::{Digest as _, Sha256};

use super::routes::Shared;

/// The parts, each once: what is hashed is what is sent.
macro_rules! style {
    () => {
        include_str!("page.css")
    };
}
macro_rules! script {
    () => {
        concat!(include_str!("words.js"), include_str!("map.js"), include_str!("shards.js"), include_str!("page.js"))
    };
}

const PAGE: &str = concat!(
    include_str!("head.html"),
    "<style>",
    style!(),
    "</style>\n",
    include_str!("body.html"),
    "<script>",
    script!(),
    "</script>\n</html>\n"
);

/// What to do about each alert, in the words that the alerts lead to.
const RUNBOOK: &str = include_str!("../../../../../docs/runbook.md");

/// What a browser may do with the page.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(script!()),
        hash(style!())
    )
});

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/", get(page))
        .route("/runbook.md", get(|| async { ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], RUNBOOK) }))
}

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("cross-origin-embedder-policy"), "require-corp"),
        (
            HeaderName::from_static("permissions-policy"),
            "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
        ),
    ];
    (headers, PAGE)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_page_is_one_script_and_one_style_without_anything_from_elsewhere() {
        for (tag, count) in [("<style", 1), ("<script", 1), ("</style", 1), ("</script", 1)] {
            assert_eq!(PAGE.matches(tag).count(), count, "{tag}");
        }
        assert!(PAGE.contains(&format!("<style>{}</style>", style!())));
        assert!(PAGE.contains(&format!("<script>{}</script>", script!())));
        for foreign in ["http://", "https://", "//cdn", " src=", "@import", "url(", "<link rel=\"stylesheet"] {
            let found = PAGE.matches(foreign).count()
                - usize::from(foreign == "http://") * PAGE.matches("http://www.w3.org/2000/svg").count();
            assert_eq!(found, 0, "{foreign}");
        }
        // Text is shown as text, and nothing runs but the script.
        for way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            " onclick=",
            " style=",
            "javascript:",
        ] {
            assert!(!PAGE.contains(way), "{way}");
        }
        assert!(!POLICY.contains("unsafe"), "{}", *POLICY);
    }

    #[test]
    fn every_remedy_that_the_page_points_to_is_in_the_runbook() {
        let words = include_str!("words.js").split("\"Vram").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0));
        let named: BTreeSet<String> = words.map(|rest| format!("Vram{rest}")).collect();
        assert!(named.len() >= 10, "{named:?}");
        for name in named {
            assert!(RUNBOOK.contains(&format!("\n## {name}\n")), "{name}");
        }
    }
}
