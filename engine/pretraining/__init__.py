"""How the nano models in ``assets/models`` were made: texts, teacher, objectives, one loop, model cards."""
