//! What reads may take of the threads that serve everybody.

use std::time::{Duration, Instant};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use tokio::{task::JoinSet, time::timeout};
use tower::ServiceExt;

use crate::http::{Access, testing::Agent};

#[tokio::test]
async fn the_description_is_no_work_for_those_who_ask_for_it() {
    let agent = Agent::new();
    let router = agent.router(Access::Everything);
    let ask = |path: &str| {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        router.clone().oneshot(request)
    };
    assert_eq!(ask("/openapi.json").await.unwrap().status(), StatusCode::OK);
    let mut many = JoinSet::new();
    (0..200).for_each(|_| drop(many.spawn(ask("/openapi.json"))));
    let since = Instant::now();
    let health = tokio::spawn(ask("/healthz")).await.unwrap().unwrap();
    assert_eq!(health.status(), StatusCode::OK);
    assert!(since.elapsed() < Duration::from_secs(1), "it came behind 200 others, after {:?}", since.elapsed());
    assert!(many.join_all().await.into_iter().all(|answer| answer.unwrap().status() == StatusCode::OK));
}

#[tokio::test]
async fn reads_that_may_be_long_take_turns_on_threads_of_their_own() {
    let agent = Agent::with_shop().await;
    let listings = &agent.app.allowance.listings;
    let places = listings.clone().acquire_many_owned(listings.available_permits() as u32).await.unwrap();
    let ask = |path: &'static str| timeout(Duration::from_millis(100), agent.get(path));
    let long = [
        "/metrics",
        "/v1/services",
        "/v1/services/shop",
        "/v1/services/shop/backends/n1",
        "/v1/nodes",
        "/v1/nodes/node-1",
        "/v1/operations",
        "/v1/history",
        "/v1/events?follow=false",
        "/v1/explain?to=10.96.0.10:80",
    ];
    for path in long {
        assert!(ask(path).await.is_err(), "{path} is answered without a place");
    }
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(ask(path).await.unwrap().0, 200, "{path}");
    }
    drop(places);
    for path in long {
        assert_eq!(agent.get(path).await.0, 200, "{path}");
    }
}
