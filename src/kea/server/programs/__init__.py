"""The endpoints for programs: Kea's own sessions, and the same in the form of Parrot's original API."""
