class OrdersController < ActionController::API
  def create
    order = Order.create!(item: params.require(:item))
    FulfilJob.perform_async(order.id)
    render json: { id: order.id }, status: :created
  end

  def show
    order = Order.find(params[:id])
    render json: { id: order.id, item: order.item, state: order.state }
  end
end
