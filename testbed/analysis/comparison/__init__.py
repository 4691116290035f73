"""What is made of one comparison: tables, sentences, figures."""
