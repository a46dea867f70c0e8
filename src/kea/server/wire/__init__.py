"""What crosses the wire: request and answer bodies, one module per endpoint family."""
