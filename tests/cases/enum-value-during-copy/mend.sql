ALTER TYPE post.state ADD VALUE 'held by customs' BEFORE 'delivered';
ALTER TYPE post.state ADD VALUE 'lost';
