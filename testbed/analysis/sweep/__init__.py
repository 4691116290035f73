"""What is made of a sweep: tables, sentences, figures."""
