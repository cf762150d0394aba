class FulfilJob
  include Sidekiq::Worker

  def perform(id)
    Order.transaction do
      order = Order.lock.find(id)
      order.update!(state: "fulfilled")
    end
  end
end
