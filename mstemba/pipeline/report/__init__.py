"""The stage `report`: a page about a model or its predictions."""
