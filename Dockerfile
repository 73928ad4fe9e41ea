# hmsa app in a container, on a CPU:
#   docker build -t hmsa . && docker run -p 127.0.0.1:7860:7860 hmsa
FROM python:3.12-slim
COPY pyproject.toml constraints.txt README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir -c /source/constraints.txt "/source[app,openvino]"
# As Spaces of Hugging Face run it; the cache holds exported networks, no uploads
RUN useradd --uid 1000 --create-home user
USER user
EXPOSE 7860
ENTRYPOINT ["hmsa", "app", "--host", "0.0.0.0"]
