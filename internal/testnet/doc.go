// Package testnet makes networks of namespaces for tests. What it makes is gone
// when the test ends; where the system has no namespaces for us, the test is
// skipped with the reason.
package testnet
